"""Images a second: of an exported SavedModel, of sampling in process, and of diffusers, in one run.

Every contender draws class-conditional samples of a DiT of the same size by DDIM, with guidance or
without, each in its own process. They take turns, so that a machine that slows down slows them all;
ratios are taken round by round.

    pip install "diffusers==0.39.0"        # the peer
    python benchmarks/sampling.py          # or --rounds=3 --num_steps=10 --guidance=2
"""

import statistics
import sys
import tempfile

import numpy as np
import timing

IMAGE_SIZE, NUM_CLASSES = 16, 8
WIDTH, PATCH_SIZE, DEPTH, HEADS = 128, 2, 6, 4
BATCHES = (1, 64)
CONTENDERS = {
    "diffusers": "diffusers, PyTorch eager",
    "exported": "SavedModel",
    "exported-xla": "SavedModel with XLA",
    "tensorflow": "sample(), TensorFlow",
    "jax": "sample(), JAX",
    "torch": "sample(), PyTorch eager",
}


def keras_model():
    from keras_cdiff import backbones

    options = {"width": WIDTH, "depth": DEPTH, "num_heads": HEADS, "num_classes": NUM_CLASSES}
    return timing.ddpm_model(backbones.DiT(IMAGE_SIZE, patch_size=PATCH_SIZE, **options))


def in_process(options):
    """Returns a function that draws a batch of images by `sample`."""
    from keras_cdiff import sample, samplers

    model, sampler = keras_model(), samplers.DDIM(options.num_steps)

    def draw(batch):
        labels = np.arange(batch) % NUM_CLASSES
        sample(model, batch, sampler, label=labels, guidance=options.guidance, progress=False)

    return draw


def exported(options, jit_compile):
    """Returns a function that draws a batch of images by a SavedModel."""
    import tensorflow as tf

    from keras_cdiff import export_sampler, samplers

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model"
        sampler = samplers.DDIM(options.num_steps)
        export_sampler(keras_model(), path, sampler, jit_compile=jit_compile)
        loaded = tf.saved_model.load(path)

    def draw(batch):
        loaded.signatures["sample"](
            seeds=tf.range(batch, dtype=tf.int64),
            label=tf.range(batch) % NUM_CLASSES,
            guidance=tf.constant(float(options.guidance)),
        )["images"].numpy()

    return draw


def diffusers_pipeline(options):
    """Returns a function that draws a batch of images as DiTPipeline does, less its decoder."""
    import torch
    from diffusers import DDIMScheduler, DiTTransformer2DModel

    network = DiTTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        in_channels=3,
        out_channels=3,
        num_layers=DEPTH,
        patch_size=PATCH_SIZE,
        sample_size=IMAGE_SIZE,
        num_embeds_ada_norm=NUM_CLASSES,
    ).eval()
    scheduler = DDIMScheduler(num_train_timesteps=1000, clip_sample=True)

    @torch.no_grad()
    def draw(batch):
        labels = torch.arange(batch) % NUM_CLASSES
        x = torch.randn(batch, 3, IMAGE_SIZE, IMAGE_SIZE)
        guided = options.guidance != 1.0
        if guided:
            labels = torch.cat([labels, torch.full_like(labels, NUM_CLASSES)])
        scheduler.set_timesteps(options.num_steps)
        for timestep in scheduler.timesteps:
            inputs = torch.cat([x, x]) if guided else x
            times = timestep.expand(len(inputs))
            noise = network(inputs, timestep=times, class_labels=labels).sample
            if guided:
                conditional, unconditional = noise.chunk(2)
                noise = unconditional + options.guidance * (conditional - unconditional)
            x = scheduler.step(noise, timestep, x).prev_sample
        ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()

    return draw


def work(contender, options):
    """Answers a batch size with the seconds that a batch took."""
    if contender == "diffusers":
        # Not needed, and PyPI's does not load beside a CPU build of torch.
        sys.modules["torchvision"] = None
        draw = diffusers_pipeline(options)
    elif contender.startswith("exported"):
        draw = exported(options, jit_compile=contender.endswith("xla"))
    else:
        draw = in_process(options)
    for batch in BATCHES:
        draw(batch)  # compiles
    timing.tell("ready")
    timing.serve(lambda batch: timing.seconds_of(draw, batch))


def main():
    options = timing.read_flags(
        __doc__, rounds=5, num_steps=20, guidance=1.0, contenders=list(CONTENDERS)
    )
    if options.worker:
        work(options.worker, options)
        return
    names = options.contenders
    workers = {
        name: timing.Worker(name, KERAS_BACKEND=name if name in ("jax", "torch") else "tensorflow")
        for name in names
    }
    for worker in workers.values():
        worker.answer()
    seconds = {(name, batch): [] for name in names for batch in BATCHES}
    for _ in range(options.rounds):
        for (name, batch), taken in seconds.items():
            taken.append(workers[name].answer(batch))
    for worker in workers.values():
        worker.close()
    print(
        f"DiT, width {WIDTH}, depth {DEPTH}, patch {PATCH_SIZE}; {IMAGE_SIZE} x {IMAGE_SIZE} "
        f"pixels, DDIM, {options.num_steps} steps, guidance {options.guidance:g}\n"
    )
    heads = ((f"batch {batch}, images/s", f"times {names[0]}") for batch in BATCHES)
    rows = []
    for name in names:
        rows.append([CONTENDERS[name]])
        for batch in BATCHES:
            own = seconds[name, batch]
            rows[-1].append(f"{batch / statistics.median(own):,.2f}")
            rows[-1].append(timing.ratio(seconds[names[0], batch], own))
    timing.print_table(["", *(cell for pair in heads for cell in pair)], rows)


if __name__ == "__main__":
    main()
