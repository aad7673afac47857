"""What a file says of itself where other programs and the hub look: base, trigger phrase, licence."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from hyperdreambooth.identity import LICENCE
from hyperdreambooth.lidb import About

if TYPE_CHECKING:
    import torch

    from hyperdreambooth.base.model import Base
    from hyperdreambooth.identity import Identity
    from hyperdreambooth.tuned import Tuned

FINGERPRINT, PROMPT = "hyperdreambooth_base", "hyperdreambooth_prompt"  # our own keys, read again by `import_lora`
_SOURCE = "https://arxiv.org/abs/2307.06949"
# By the width of the text states and whether v is predicted: ModelSpec's name of a version, kohya's name.
_VERSIONS = {
    (768, False): ("stable-diffusion-v1", "sd_v1"),
    (768, True): ("stable-diffusion-v1", "sd_v1_v"),
    (1024, False): ("stable-diffusion-v2-512", "sd_v2"),
    (1024, True): ("stable-diffusion-v2-768-v", "sd_v2_v"),
    (2048, False): ("stable-diffusion-xl-v1-base", "sdxl_base_v1-0"),
    (2048, True): ("stable-diffusion-xl-v1-base", "sdxl_base_v1-0"),
}
_BASES = {"stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5"}  # folders named as the hub's models


def trigger(person: Identity | Tuned) -> str:
    """What to write in a prompt: the person's own prompt, the rare token in the place of "[V]"."""
    return person.prompt.replace("[V]", person.rare_token).replace("[v]", person.rare_token)


def about(person: Identity, base: Base, title: str, dtype: torch.dtype) -> About:
    """What an exported LoRA says: kohya's ``ss_`` keys, Stability's ``modelspec.`` keys, and a model card.

    Args:
        person: whom it is of.
        base: that it is for.
        title: what people call it: the file's name.
        dtype: of its numbers.
    """
    return About(lora_metadata(person, base, title), base.name, model_card(person, base.name, title, "peft"), dtype)


def lora_metadata(person: Identity, base: Base, title: str) -> dict[str, str]:
    """The header's text of an exported LoRA, in the keys that A1111, ComfyUI and the hub show."""
    width, words = int(base.unet.config.cross_attention_dim), trigger(person)
    predicts_v = base.prediction_type == "v_prediction"
    architecture, version = _VERSIONS.get((width, predicts_v), (base.name, ""))
    kohya = {
        "ss_output_name": title,
        "ss_sd_model_name": base.name,
        "ss_v2": str(width == 1024),
        "ss_resolution": f"({base.picture_size}, {base.picture_size})",
        "ss_tag_frequency": json.dumps({title: {words: 1}}),
        "ss_training_comment": LICENCE,
    }
    if version:
        kohya["ss_base_model_version"] = version
    spec = {
        "sai_model_spec": "1.0.0",
        "architecture": f"{architecture}/lora",
        "implementation": "diffusers",
        "title": title,
        "description": f"One person, made by HyperDreamBooth ({_SOURCE}), for the base {base.name} and no other.",
        "usage_hint": f"Trigger: {words}",
        "trigger_phrase": words,
        "license": LICENCE,
        "category": "Person",
        "resolution": f"{base.picture_size}x{base.picture_size}",
        "prediction_type": "v" if predicts_v else base.prediction_type,
    }
    own = {FINGERPRINT: person.base, PROMPT: person.prompt}
    return kohya | {f"modelspec.{key}": value for key, value in spec.items()} | own


def model_card(person: Identity | Tuned, base_name: str, title: str, library: str) -> str:
    """A README.md with the hub's header: base, trigger phrase, licence, and how to use it.

    Args:
        person: whom it is of.
        base_name: the base's name; one with an owner, as the hub's are, is linked.
        title: of the card.
        library: that opens it: "peft", "diffusers" or "hyperdreambooth".
    """
    from huggingface_hub import ModelCardData

    linked, words = _BASES.get(base_name, base_name.partition("@")[0] if "/" in base_name else None), trigger(person)
    header = ModelCardData(
        base_model=linked,
        library_name=library,
        license="other",
        license_name="likeness",
        pipeline_tag="text-to-image",
        tags=[
            "text-to-image",
            "stable-diffusion",
            "hyperdreambooth",
            "person",
            *(["lora"] if library == "peft" else []),
        ],
        instance_prompt=words,
    )
    made = ", ".join(f"{name} {value}" for name, value in person.how.items())
    return "\n".join(
        [
            f"---\n{header.to_yaml()}\n---\n",
            f"# {title}\n",
            f"One person for the base {base_name} and no other, made by [HyperDreamBooth]({_SOURCE}).\n",
            f"**Prompt**: `{words}`\n",
            *_USES[library],
            f"**Licence**: {LICENCE}. This is somebody's face: do not hand it on without that person's word.\n",
            *([f"Made with: {made}.\n"] if made else []),
        ]
    )


_USES = {
    "peft": ("```python\nPeftModel.from_pretrained(pipeline.unet, FOLDER / 'unet')  # and text_encoder\n```\n",),
    "diffusers": ("```python\nStableDiffusionPipeline.from_pretrained(FOLDER)\n```\n",),
    "hyperdreambooth": ("    hdb pull REPO -o person.safetensors\n    hdb generate person.safetensors --prompt ...\n",),
}
