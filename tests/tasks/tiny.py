"""Settings of runs small enough for tests: 16 px shapes, a few steps, one thread."""

TINY_DATA = ["data.image_size=16", "data.train_images=64", "data.val_images=32"]
TINY_COMMON = [
    "logger=files",
    "budget.cpu_seconds=null",
    "metrics.samples=12",
    "metrics.sampling_batch=4",
    "metrics.speed_repeats=1",
    "metrics.speed_batch=2",
    "metrics.features.input_size=32",
    "trainer.lightning.accelerator=cpu",
    "trainer.threads=1",
    "trainer.grids=1",
    "autoencoder.network.channels=16",
    "autoencoder.batch_size=8",
]
TINY_VAE = [*TINY_DATA, *TINY_COMMON, "budget.steps=6"]
TINY_GAN = [
    *TINY_VAE,
    "autoencoder=vq",
    "autoencoder.codes=16",
    "autoencoder/perceptual=effnet_lite1",
    "autoencoder.perceptual.stages=1",
    "autoencoder/adversarial=patchgan",
    "autoencoder.adversarial.discriminator.channels=8",
    "autoencoder.adversarial.discriminator.layers=1",
    "autoencoder.adversarial.start=0",
    "autoencoder.adversarial.heard_from=0.3",
    "autoencoder.adversarial.ramp=0.5",
    "autoencoder/equivariance=eq_vae",
]
TINY_DIFFUSION = [
    *TINY_DATA,
    *TINY_COMMON,
    "batch_size=8",
    "denoiser.channels=16",
    "denoiser.head_channels=8",
    "sampler.steps=2",
]
TINY_F1 = [*TINY_DIFFUSION, "downsampling=f1", "budget.steps=6"]
TINY_LDM = [*TINY_DIFFUSION, "budget.steps=12", "autoencoder_share=0.5"]
