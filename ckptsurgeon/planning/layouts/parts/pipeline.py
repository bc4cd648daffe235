"""The networks of a pipeline of Stable Diffusion, found from the keys: U-Net, autoencoder and text encoders."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..layout import Tensors
from .autoencoder import Autoencoder, autoencoder_in, autoencoder_names
from .autoencoder import completed as completed_autoencoder
from .autoencoder import groups_alike as alike_in_autoencoder
from .text_encoder import TextEncoder, encoders_in, their_encoders_in
from .unet import UNet, unet_in, unet_names
from .unet import completed as completed_unet
from .unet import groups_alike as alike_in_unet

__all__ = ["THEIR_UNET", "THEIR_VAE", "UNET", "VAE", "Pipeline", "pipeline_in"]

UNET, VAE = "unet.", "vae."
"""The prefixes of the keys of the U-Net and the VAE if all components of a pipeline are read together."""
THEIR_UNET, THEIR_VAE = "model.diffusion_model.", "first_stage_model."
_PREFIXES = ((True, THEIR_UNET, THEIR_VAE), (False, UNET, VAE), (True, "", ""), (False, "", ""))


@dataclass(frozen=True)
class Pipeline:
    """The structures of the networks in a pipeline; ``unet`` and ``vae`` are None if the pipeline lacks them."""

    unet: UNet | None
    vae: Autoencoder | None
    texts: tuple[TextEncoder, ...] = ()

    @property
    def prefix(self) -> str:
        """The prefix of all keys in diffusers if the pipeline has only one network; else ''."""
        return next(iter(self.components)) if len(self.components) == 1 else ""

    @property
    def components(self) -> dict[str, str]:
        """A map from the prefix of each network's keys in diffusers to their prefix in the original code."""
        found = {UNET: THEIR_UNET} if self.unet else {}
        found |= {VAE: THEIR_VAE} if self.vae else {}
        return found | {text.ours: text.theirs for text in self.texts}

    def names(self) -> dict[str, str]:
        """Return a map from names of modules in diffusers to their names in the original code of Stable Diffusion.

        A few names are those of tensors. Modules that the original code joins into one are left out.
        """
        names = unet_names(self.unet, UNET, THEIR_UNET) if self.unet else {}
        names |= autoencoder_names(self.vae, VAE, THEIR_VAE) if self.vae else {}
        for text in self.texts:
            names |= text.names()
        return names

    def lacking(self) -> dict[str, str]:
        """Return a map like that of ``names`` of the missing blocks, which others show, in the order of their use."""
        unet, vae = self.unet and completed_unet(self.unet), self.vae and completed_autoencoder(self.vae)
        own, found = self.names(), {}
        for ours, theirs in replace(self, unet=unet, vae=vae).names().items():
            if ours not in own and ".resnets." in ours:
                found[ours.rpartition(".")[0]] = theirs.rpartition(".")[0]
            elif ours not in own and ".attentions." in ours:
                found[ours] = theirs
        return found

    def alike(self) -> tuple[tuple[str, ...], ...]:
        """Return groups of names of modules in diffusers; the modules of a group have the same tensors."""
        groups = alike_in_unet(self.unet, UNET) if self.unet else ()
        groups += alike_in_autoencoder(self.vae, VAE) if self.vae else ()
        norms = tuple(text.last_norm for text in self.texts)
        return (*groups[:-1], (*groups[-1], *norms), tuple(name for text in self.texts for name in text.matrices))


def pipeline_in(tensors: Tensors) -> Pipeline | None:
    """Return the structure of the networks that have these tensors; None if they are other networks.

    The tensors are those of an original all-in-one file, also with ComfyUI's prefix of the VAE, of a pipeline of
    diffusers, or of a single U-Net or autoencoder.
    """
    for is_ldm, unet, vae in _PREFIXES:
        found = unet_in(tensors, unet, is_ldm=is_ldm), autoencoder_in(tensors, vae, is_ldm=is_ldm)
        if vae == THEIR_VAE and found[1] is None:  # ComfyUI writes the other prefix into files of Flux
            found = found[0], autoencoder_in(tensors, VAE, is_ldm=is_ldm)
        if any(found):
            ours = their_encoders_in(tensors) if is_ldm else encoders_in(tensors, _PROJECTION)
            return Pipeline(*found, ours if unet else ())
    return None


_PROJECTION = f"{UNET}mid_block.attentions.0.proj_in.weight"
