"""The bundled models; each module defines one as ``MODEL``, and a configuration names the module."""
