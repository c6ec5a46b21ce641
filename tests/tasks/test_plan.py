"""Planning a run before it is started."""

import json
import time

import pytest
import torch
from tiny import TINY_F1, TINY_GAN, TINY_LDM, TINY_VAE

from ldmlab.data.shapes import CLASS_NAMES
from ldmlab.metrics.speed import peak_memory_mb, reset_peak_memory
from ldmlab.tasks.plan import this_machine

pytestmark = pytest.mark.slow

ALONE = ["plan.here=false", "plan.output=plan.json"]


@pytest.fixture
def plan(ldmlab):
    """The records of a plan, by stage, of one V100."""

    def planned(*arguments):
        assert ldmlab("plan", *arguments, *ALONE) == 0, ldmlab.said.err
        records = json.loads((ldmlab.folder / "plan.json").read_text())
        return {r["stage"]: r for r in records if r["device"] == "v100_32gb" and r["devices"] == 1}

    return planned


def test_a_plan_agrees_with_the_run(ldmlab, plan, trained):
    planned = plan(*TINY_LDM, f"plan.assumed.classes={len(CLASS_NAMES)}")
    for stage, name, networks in (("autoencoder", "vae-f4", ["autoencoder"]), ("diffusion", "ldm-f4", ["denoiser"])):
        summary = json.loads((trained / "runs" / "t" / name / "summary.json").read_text())
        need = planned[stage]["footprint"]
        assert need["parameters"] == sum(summary["parameters"][network] for network in networks)
        flops = summary["cost"]["flops"] / summary["cost"]["images"]
        assert need["flops"] == pytest.approx(flops, rel=0.05)
    drawn = json.loads((trained / "runs/t/ldm-f4/summary.json").read_text())["metrics"]
    made = planned["diffusion"]["flops_per_s"] / planned["diffusion"]["sampled_images_per_s"]
    assert made == pytest.approx(drawn["speed/flops_per_image@euler2"]["value"], rel=0.05)


def test_a_budget_of_steps_says_how_long_it_takes(plan):
    one = plan(*TINY_F1, "budget.steps=1000")["diffusion"]
    assert one["images"] == 8000
    assert one["hours"] == pytest.approx(8000 / one["images_per_s"] / 3600)
    assert plan(*TINY_F1, "budget.steps=null", "budget.cpu_seconds=100")["diffusion"]["hours"] is None
    assert plan(*TINY_F1, "budget.steps=1000", "budget.images=80")["diffusion"]["images"] == 80
    accumulated = plan(*TINY_F1, "budget.steps=1000", "trainer.lightning.accumulate_grad_batches=2")["diffusion"]
    assert accumulated["images"] == 16000


@pytest.mark.parametrize(
    "conditioner",
    ["none", "text_pretrained", "class+text+semantic+layout+super_resolution+inpainting"],
)
def test_every_conditioner_can_be_planned(plan, conditioner):
    assert plan(*TINY_LDM, "plan.stage=diffusion", f"conditioner={conditioner}")["diffusion"]["footprint"]["flops"] > 0


def test_the_losses_of_an_autoencoder_are_planned_too(plan):
    plain = plan(*TINY_VAE, "autoencoder=vq", "plan.stage=autoencoder")["autoencoder"]["footprint"]
    against = plan(*TINY_GAN, "plan.stage=autoencoder")["autoencoder"]["footprint"]
    assert against["flops"] > 1.2 * plain["flops"]
    assert against["parameters"] > plain["parameters"]


@pytest.mark.parametrize(("autoencoder", "size"), [("kl", "paper"), ("vq", "paper"), ("fsq", "small")])
def test_every_autoencoder_can_be_planned(plan, autoencoder, size):
    planned = plan(f"autoencoder={autoencoder}", f"autoencoder/size={size}", "plan.stage=autoencoder")
    assert planned["autoencoder"]["footprint"]["activations"] > 0


def test_guidance_and_solvers_decide_what_an_image_costs(plan):
    def cost(*arguments):
        found = plan(*TINY_F1, "sampler.steps=10", *arguments)["diffusion"]
        return found["flops_per_s"] / found["sampled_images_per_s"]

    alone = cost("guidance=none")
    assert cost() == pytest.approx(2 * alone)
    assert cost("sampler=heun", "guidance=none") == pytest.approx(1.9 * alone)
    assert alone < cost("guidance=interval", "guidance.start=0.4", "guidance.stop=0.6") < cost()


def test_half_precision_keeps_less_and_is_faster(plan):
    full, half = (plan(*TINY_F1, f"trainer.lightning.precision={p}")["diffusion"] for p in ("32-true", "16-mixed"))
    assert half["footprint"]["activations"] < 0.8 * full["footprint"]["activations"]
    assert half["flops_per_s"] > full["flops_per_s"]
    assert full["computes_in"] == "fp32"  # a V100 has no TF32
    assert half["computes_in"] == "fp16"


def test_memory_and_time_are_what_a_step_takes(plan):
    """A step of a network that is large enough to be seen beside everything else in this process."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from ldmlab.hydra_errors import find_folder
    from ldmlab.modules.latent_diffusion import LatentDiffusionModule
    from ldmlab.tasks import build
    from ldmlab.types import DataInfo

    wanted = ["downsampling=f1", "conditioner=none", "guidance=none", "denoiser.channels=128", "optimizer=adamw"]
    wanted += ["data.image_size=32", "denoiser.channel_multipliers=[1,2,4]", "batch_size=32"]
    need = plan(*wanted)["diffusion"]
    with initialize_config_dir(str(find_folder("conf")), version_base="1.3"):
        config = OmegaConf.to_container(compose("train_ldm", wanted), resolve=True)
    config["autoencoder"] = build.IDENTITY

    batch = {"image": torch.rand(32, 3, 32, 32)}
    reset_peak_memory("cpu")
    before = peak_memory_mb("cpu")
    model = build.build_model(config, DataInfo("x", 32, ""), build.build_autoencoder(config))
    module = LatentDiffusionModule(model, build.build(config["optimizer"], "optimizer"), 12)
    optimizer = module.configure_optimizers()
    for _ in range(2):
        started = time.process_time()
        module.loss(batch).backward()
        optimizer.step()
        module.ema.update(module.model.network)
        optimizer.zero_grad(set_to_none=False)
        seconds = time.process_time() - started
    measured = peak_memory_mb("cpu") - before
    print(f"planned {need['memory'] / 1e6:.0f} MB, measured {measured:.0f} MB")
    assert need["memory"] / 1e6 == pytest.approx(measured, rel=0.3)

    settings = OmegaConf.to_container(OmegaConf.load(find_folder("conf") / "plan.yaml").plan)
    here = this_machine({"plan": settings, "trainer": {"threads": torch.get_num_threads()}})
    planned = 32 * need["footprint"]["flops"] / here.flops * torch.get_num_threads()
    print(f"planned {planned:.2f} CPU seconds, measured {seconds:.2f}")
    assert planned / 2.5 < seconds < planned * 2.5


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        (["plan.stage=two"], "plan.stage: both, autoencoder or diffusion"),
        (["plan.devices=0"], "plan.devices: a whole number of 1 or more"),
        (["plan.utilisation.fp32=3"], "plan.utilisation.fp32: a number above 0"),
        (["plan.gpus.t4.memory=no"], "plan.gpus.t4.memory"),
        (["+plan.gpus.new={fp32:3}"], "plan.gpus.new: memory is missing"),
        (["plan.outputs=x.json"], "plan.outputs"),
        (["denoiser.head_channels=5"], "head_channels"),
    ],
)
def test_wrong_wishes_end_in_one_line(ldmlab, wish, said):
    assert said in ldmlab.error("plan", *TINY_F1, *wish)
