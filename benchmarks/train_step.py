"""Milliseconds of a training step on each Keras backend and in diffusers, in one run.

Every contender trains the same kind of network on the same batch in its own process: noise is drawn
and added, the loss is the mean squared error on the noise, AdamW steps, the average of the weights
follows. They take turns, so that a machine that slows down slows them all; ratios are taken round
by round.

    pip install "diffusers==0.39.0"        # the peer
    python benchmarks/train_step.py        # or --network=song_unet --rounds=5 --steps=10
"""

import statistics
import sys
import time

import numpy as np
import timing

IMAGE_SIZE, NUM_CLASSES, BATCH = 16, 8, 32
SHAPE = (IMAGE_SIZE, IMAGE_SIZE, 3)
WIDTH, PATCH_SIZE, DEPTH, HEADS = 128, 2, 6, 4  # of the transformers
CHANNELS, BLOCKS = (64, 128), 2  # of the U-Nets' levels, and residual blocks in each
NETWORKS = {
    "dit": "DiT, width 128, depth 6, patch 2",
    "song_unet": "SongUNet (DDPM++), 64 and 128 channels, 2 blocks a level",
    "dhariwal_unet": "DhariwalUNet (ADM), 64 and 128 channels, 2 blocks a level",
}
CONTENDERS = {
    "diffusers": "diffusers, PyTorch eager",
    "diffusers-compiled": "diffusers, torch.compile",
    "tensorflow": "keras_cdiff, TensorFlow",
    "jax": "keras_cdiff, JAX",
    "torch": "keras_cdiff, PyTorch eager",
}


def keras_network(name):
    from keras_cdiff import backbones

    if name == "dit":
        return backbones.DiT(
            IMAGE_SIZE,
            patch_size=PATCH_SIZE,
            width=WIDTH,
            depth=DEPTH,
            num_heads=HEADS,
            num_classes=NUM_CLASSES,
        )
    network = {"song_unet": backbones.SongUNet, "dhariwal_unet": backbones.DhariwalUNet}[name]
    return network(
        IMAGE_SIZE,
        width=CHANNELS[0],
        channel_multipliers=[channels // CHANNELS[0] for channels in CHANNELS],
        num_blocks=BLOCKS,
        attention_resolutions=[IMAGE_SIZE // 2],
        num_classes=NUM_CLASSES,
        dropout=0.0,
    )


def diffusers_network(name):
    import diffusers

    if name == "dit":
        return diffusers.DiTTransformer2DModel(
            num_attention_heads=HEADS,
            attention_head_dim=WIDTH // HEADS,
            in_channels=3,
            out_channels=3,
            num_layers=DEPTH,
            patch_size=PATCH_SIZE,
            sample_size=IMAGE_SIZE,
            num_embeds_ada_norm=NUM_CLASSES,
        )
    return diffusers.UNet2DModel(
        sample_size=IMAGE_SIZE,
        block_out_channels=CHANNELS,
        layers_per_block=BLOCKS,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=CHANNELS[-1] if name == "song_unet" else 64,
        resnet_time_scale_shift="default" if name == "song_unet" else "scale_shift",
        num_class_embeds=NUM_CLASSES,
    )


def keras_steps(name):
    """Returns a function: number of steps -> seconds of each, through `fit`; and parameters."""
    model = timing.ddpm_model(keras_network(name))
    batch = timing.random_batch(BATCH, SHAPE, NUM_CLASSES)
    count = model.backbone.count_params()
    return lambda steps: timing.step_seconds(model, batch, steps), count


def diffusers_steps(name, compiled):
    """The same for diffusers' network and DDPM scheduler, trained as its examples do."""
    import torch
    from diffusers import DDPMScheduler

    network = diffusers_network(name).train()
    average = [p.detach().clone() for p in network.parameters()]
    forward = torch.compile(network) if compiled else network
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.0)
    batch = timing.random_batch(BATCH, SHAPE, NUM_CLASSES)
    images = torch.tensor(np.moveaxis(batch["image"], -1, 1).copy())
    labels = torch.tensor(batch["label"]).long()

    def run(count):
        seconds = []
        for _ in range(count):
            began = time.perf_counter()
            noise = torch.randn_like(images)
            timesteps = torch.randint(0, 1000, (BATCH,))
            noisy = scheduler.add_noise(images, noise, timesteps)
            output = forward(noisy, timestep=timesteps, class_labels=labels).sample
            loss = torch.nn.functional.mse_loss(output, noise)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(average, list(network.parameters()), 1e-4)
            loss.item()
            seconds.append(time.perf_counter() - began)
        return seconds

    return run, sum(p.numel() for p in network.parameters())


def work(contender, name):
    """Tells the number of parameters, then answers a number of steps with their seconds."""
    if contender.startswith("diffusers"):
        # Not needed, and PyPI's does not load beside a CPU build of torch.
        sys.modules["torchvision"] = None
        run, parameters = diffusers_steps(name, compiled=contender.endswith("compiled"))
    else:
        run, parameters = keras_steps(name)
    run(4)  # compiles
    timing.tell(parameters)
    timing.serve(run)


def main():
    options = timing.read_flags(
        __doc__,
        network=("dit", "what is trained", NETWORKS),
        rounds=7,
        steps=(10, "steps a contender a round"),
        contenders=list(CONTENDERS),
    )
    if options.worker:
        work(options.worker, options.network)
        return
    names = options.contenders
    workers = {
        name: timing.Worker(name, KERAS_BACKEND=name if name in timing.BACKENDS else "torch")
        for name in names
    }
    parameters = {name: worker.answer() for name, worker in workers.items()}
    seconds = {name: [] for name in names}
    for _ in range(options.rounds):
        for name, worker in workers.items():
            seconds[name].append(statistics.median(worker.answer(options.steps)))
    for worker in workers.values():
        worker.close()
    print(f"{NETWORKS[options.network]}; {IMAGE_SIZE} x {IMAGE_SIZE} pixels, batch {BATCH}\n")
    timing.print_table(
        ("", "parameters", "ms a step", f"times as fast as {CONTENDERS[names[0]]} [by round]"),
        (
            (
                CONTENDERS[name],
                f"{parameters[name]:,}",
                f"{1000 * statistics.median(seconds[name]):.1f}",
                timing.ratio(seconds[names[0]], seconds[name]),
            )
            for name in names
        ),
    )


if __name__ == "__main__":
    main()
