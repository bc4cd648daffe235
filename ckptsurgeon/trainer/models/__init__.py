"""The bundled models; each module defines one as ``MODEL``, and a configuration selects it by the module's name."""
