"""`solo chat`: a page to ask a model about pictures, and to look at how it answers. Only `app` needs Gradio."""
