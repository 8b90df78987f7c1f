"""Launches a config on machines: this one, a SLURM cluster, Google Kubernetes Engine, or Cloud TPU VMs.

    solo launch {local,slurm,gke,tpu-vm} CONFIG --on TYPE [--yes]
    solo launch {status,logs,stop,watch} RUN

Every target makes a `Plan`: files to write, commands to run, and commands that show and stop what they started. Without
`--yes` the plan is printed as a shell script; with it, the same plan is executed. No cloud library is imported: all
actions are the printed commands of `sbatch`, `kubectl` and `gcloud`.

All targets treat the exit statuses of `solo train` in the same way: 0: done; 42: saved or interrupted, restart; 1 to
126, except 42: a fault that a restart does not fix; above 126: killed, restart. After several starts in a row without a
new checkpoint, a run is not restarted; see `solo.launch.restarts`.
"""
