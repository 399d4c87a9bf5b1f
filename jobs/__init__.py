"""The programs that run inside the container: supervisor, uploader, trainer, sampler.

Must not import `launcher`, the Kubernetes client or Typer.
"""

__version__ = "0.1.0"
