"""The 192-layer rule on Stable Diffusion 1.5's shapes, its names and its order."""

from collections import Counter

import pytest
import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from hyperdreambooth.base.single_file import LAYOUTS
from hyperdreambooth.errors import SiteTooNarrow, UserError
from hyperdreambooth.lidb import LiDBSpace, LoRALayout, Site, find_sites


@pytest.fixture(scope="module")
def sd15() -> tuple[Site, ...]:
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
        text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        return find_sites(unet, CLIPTextModel(text))


def test_stable_diffusion_has_the_papers_counts(sd15: tuple[Site, ...]) -> None:
    assert len(sd15) == 192
    assert LoRALayout(sd15, rank=1).size == 385_344
    assert LoRALayout(sd15, rank=4).size == 1_541_376
    assert LiDBSpace(sd15, a=100, b=50).size() == 28_800


@pytest.mark.parametrize(
    ("layout", "counts", "rank_one"),
    [
        ("sd1", {"text_encoder": 48, "unet": 144}, 385_344),
        ("sd2", {"text_encoder": 92, "unet": 144}, 508_224),
        ("sdxl", {"text_encoder": 48, "text_encoder_2": 128, "unet": 630}, 2_601_728),
    ],
)
def test_the_rule_finds_the_sites_of_every_stable_diffusion(layout: str, counts: dict[str, int], rank_one: int) -> None:
    """1.5, 2.1 and XL at their true sizes, on the meta device: 192, 236 and 806; the paper's a and b fit them all."""
    folder = LAYOUTS / layout
    with torch.device("meta"):
        models = {"unet": UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet"))}
        models["text_encoder"] = CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder"))
        if "text_encoder_2" in counts:
            second = CLIPTextConfig.from_pretrained(folder / "text_encoder_2")
            models["text_encoder_2"] = CLIPTextModelWithProjection(second)
        sites = find_sites(**models)
    assert Counter(site.model for site in sites) == counts
    assert LoRALayout(sites, rank=1).size == rank_one
    assert LiDBSpace(sites, a=100, b=50).size() == 150 * sum(counts.values())


def test_sites_stand_in_order_of_execution(sd15: tuple[Site, ...]) -> None:
    names = [site.name for site in sd15]
    layer = "text_encoder.text_model.encoder.layers."
    assert names[:5] == [f"{layer}0.self_attn.{p}_proj" for p in ("q", "k", "v", "out")] + [
        f"{layer}1.self_attn.q_proj"
    ]
    block = "unet.down_blocks.0.attentions.0.transformer_blocks.0."
    layers = [
        f"{attention}.{layer}" for attention in ("attn1", "attn2") for layer in ("to_q", "to_k", "to_v", "to_out.0")
    ]
    assert names[48:57] == [block + layer for layer in [*layers, "ff.net.0.proj"]]
    stages = [name.split(".")[1] for name in names[48:]]
    assert stages == ["down_blocks"] * 54 + ["mid_block"] * 9 + ["up_blocks"] * 81
    assert names[40].startswith(f"{layer}10.")  # 10 after 9, not after 1
    assert names[-1] == "unet.up_blocks.3.attentions.2.transformer_blocks.0.ff.net.0.proj"


def test_canonical_names_outlive_module_paths() -> None:
    """Older transformers keep the text model one level deeper; names and order are the same."""

    def encoder(depth: str) -> nn.Module:
        attention = nn.ModuleDict({f"{p}_proj": nn.Linear(8, 8) for p in ("k", "v", "q", "out")})
        layers = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"self_attn": attention})])})
        inner = nn.ModuleDict({"encoder": layers})
        return nn.ModuleDict({"text_model": inner}) if depth == "old" else inner

    old, new = find_sites(None, encoder("old")), find_sites(None, encoder("new"))
    assert [site.name for site in old] == [site.name for site in new]
    assert [site.path for site in old] == ["text_model." + site.path for site in new]
    assert LiDBSpace(old, 2, 2).digest == LiDBSpace(new, 2, 2).digest


def test_a_layer_too_narrow_is_named() -> None:
    site = Site("unet.some.to_q", "unet", "some.to_q", n_in=16, n_out=8)
    LiDBSpace((site,), a=15, b=7)
    for a, b in ((16, 7), (15, 8)):
        with pytest.raises(SiteTooNarrow, match=r"unet\.some\.to_q"):
            LiDBSpace((site,), a=a, b=b)


def test_a_model_without_attention_is_refused() -> None:
    with pytest.raises(UserError, match="no attention layer"):
        find_sites(nn.Linear(2, 2), None)


def test_a_model_of_other_blocks_is_named() -> None:
    """As Stable Diffusion 3 and Flux, whose transformers read pictures and text together."""
    with torch.device("meta"):
        model = SD3Transformer2DModel(num_layers=2, num_attention_heads=2, attention_head_dim=8)
    with pytest.raises(UserError, match=r"SD3Transformer2DModel \(of JointTransformerBlock\).*2\.x or SDXL"):
        find_sites(model, None)
