"""`solo chat`: a web page to ask a model about images and to inspect its answers. Only `app` needs Gradio."""
