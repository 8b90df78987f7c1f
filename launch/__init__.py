"""Takes a config to machines: this one, a SLURM cluster, Google Kubernetes Engine, Cloud TPU VMs.

    python -m launch {local,slurm,gke,tpu-vm} CONFIG --on TYPE [--yes]
    python -m launch {status,logs,stop,watch} RUN

Every target makes a `Plan`: files to write, commands to run, and how to see and stop what they started. Without `--yes`
the plan is printed, as a shell script; with it, that same plan is carried out. No cloud's library is imported: all that
is done is done by `sbatch`, `kubectl` and `gcloud`, as printed.

What holds everywhere (exit statuses of `solo train`): 0 done; 42 saved or interrupted, to be started again; 1 to 126 a
fault that starting again does not cure; more: killed, to be started again. Several starts in a row without a new
checkpoint end a run: see `launch.restarts`.
"""
