"""Time StyleGAN2 training and generation against NVIDIA's published code, phase by phase, in turn.

    git clone https://github.com/NVlabs/stylegan2-ada-pytorch PEER   (commit d72cc7d)
    python benchmarks/stylegan2.py PEER --size 64 --rounds 3 --json stylegan2_64.json
    python benchmarks/stylegan2.py PEER --size 256 --phases Gmain,Dmain,Dreg,Greg,ema,gen,aug@bgc

The peer stays outside this project: its licence is non-commercial. It is imported and runs with its
reference operations (nothing of it is compiled), in fp32, with the channels of its `auto`
configuration. Each phase is called on a batch and includes the optimizer's step:

Gmain, Dmain   the two losses; ours reuses the generated images of Gmain for Dmain, as its training
               does, the peer makes new ones
Dreg, Greg     R1 and path length (on half a batch)
ema, gen       the moving average of the weights, and generation in evaluation mode
aug@bgc        adaptive augmentation alone, p = 1; Gmain@bgc, Dmain@bgc, Dreg@bgc: the phase with it

`step` is the cost of a training image with lazy regularization:
(Gmain + Dmain + Greg/4 + Dreg/16 + ema) / batch size. The peer is timed with the system's malloc
("shipped") and with the heap retained ("retained", `core.memory.retain_heap`, as in our runs).
"""

import argparse
import gc
import json
import statistics
import sys
import time
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from heap import heap

from medgan_nb.training.augment import AdaptiveAugment
from medgan_nb.training.registry import model_recipe
from medgan_nb.training.step import (
    d_step,
    g_step,
    generate,
    init_state,
    optimizer_step,
    update_ema,
)

PHASES = ("Gmain", "Dmain", "Dreg", "Greg", "ema", "gen")
BLIT = ("xflip", "rotate90", "xint")
GEOMETRY = ("scale", "rotate", "aniso", "xfrac")
COLOR = ("brightness", "contrast", "lumaflip", "hue", "saturation")
PIPES = {"blit": BLIT, "bg": BLIT + GEOMETRY, "bgc": BLIT + GEOMETRY + COLOR}
MAPPING_LAYERS, Z_DIM = 2, 512


def training_phases(state, regularizers, x_real, x_fake):
    "{phase: callable} of one training step, with the augmentation that `state` has when called."

    def g_main():
        return g_step(state, x_real, *generate(state, len(x_real)))

    def d_main():
        return d_step(state, x_real, None, x_fake, None)

    def regularization(regularizer, optimizer):
        optimizer.zero_grad(set_to_none=True)
        factor = regularizer.weight * regularizer.interval
        loss = factor * regularizer.loss(state, x_real, x_fake, None)
        optimizer_step(state, optimizer, loss, {}, regularizer.name)

    r1, path_length = regularizers
    return {
        "Gmain": g_main,
        "Dmain": d_main,
        "Dreg": partial(regularization, r1, state.opt_D),
        "Greg": partial(regularization, path_length, state.opt_G),
    }


def augmented(state, augment, phase):
    "A phase that runs with an augmentation, which is removed afterwards."

    def run():
        state.augment, without = augment, state.augment
        try:
            return phase()
        finally:
            state.augment = without

    return run


def our_phases(options, phases, augments, precision):
    "{phase: callable} of this project."
    recipe = model_recipe(
        "stylegan2",
        options.size,
        config="auto",
        batch_size=options.batch_size,
        channel_base=options.channel_base,
        channel_max=options.channel_max,
        mapping_layers=MAPPING_LAYERS,
    )
    # without regularizers in the recipe, g_step and d_step run the losses alone
    state = init_state(replace(recipe, regularizers=()), 0, options.device, precision)
    for regularizer in recipe.regularizers:
        if regularizer.state:
            state.regularizer_state[regularizer.name] = regularizer.state().to(options.device)
    shape = options.batch_size, 1, options.size, options.size
    x_real = (torch.rand(shape, device=options.device) * 2 - 1).contiguous(
        memory_format=torch.channels_last
    )
    with torch.no_grad():
        x_fake, _ = generate(state, options.batch_size)
    training = training_phases(state, recipe.regularizers, x_real, x_fake)
    runs = dict(training)
    for name in augments:
        augment = AdaptiveAugment(name, p=options.aug_p, target=None).to(options.device)
        runs[f"aug@{name}"] = torch.no_grad()(partial(augment, x_real))
        for phase in ("Gmain", "Dmain", "Dreg"):
            runs[f"{phase}@{name}"] = augmented(state, augment, training[phase])
    runs["ema"] = partial(update_ema, state)
    runs["gen"] = generation(state, options.batch_size, recipe.z_dim, options.device)
    return {phase: run for phase, run in runs.items() if phase in phases}


def generation(state, batch_size, z_dim, device):
    "A callable that generates a batch with the averaged weights."
    G = state.G_ema.eval()
    z = torch.randn(batch_size, z_dim, device=device)

    @torch.inference_mode()
    def run():
        with state.autocast():
            return G(z)

    return run


def peer_networks(networks, options):
    "G, D and the averaged G of the peer, from its module `networks`."
    size = dict(
        channel_base=options.channel_base,
        channel_max=options.channel_max,
        num_fp16_res=0,
        conv_clamp=None,
    )
    images = dict(c_dim=0, img_resolution=options.size, img_channels=1)
    build_G = partial(
        networks.Generator,
        z_dim=Z_DIM,
        w_dim=Z_DIM,
        mapping_kwargs=dict(num_layers=MAPPING_LAYERS),
        synthesis_kwargs=size,
        **images,
    )
    mbstd = dict(mbstd_group_size=min(options.batch_size, 4))
    G = build_G().train().to(options.device)
    D = networks.Discriminator(**images, **size, epilogue_kwargs=mbstd)
    D = D.train().to(options.device)
    return G, D, build_G().eval().requires_grad_(False).to(options.device)


def lazy_adam(network, interval):
    "Adam with the peer's correction for a regularizer that runs every `interval` steps."
    ratio = interval / (interval + 1)
    return torch.optim.Adam(
        network.parameters(), lr=0.0025 * ratio, betas=(0.0, 0.99**ratio), eps=1e-8
    )


def peer_phases(options, phases, augments):
    "{phase: callable} of the peer's checkout."
    sys.path.insert(0, str(options.peer))
    from torch_utils.ops import bias_act, upfirdn2d
    from training import augment, networks
    from training.loss import StyleGAN2Loss

    upfirdn2d._init = bias_act._init = lambda: False  # reference operations, nothing compiled
    torch.manual_seed(0)
    G, D, G_ema = peer_networks(networks, options)
    batch_size, device = options.batch_size, options.device
    x_real = torch.rand(batch_size, 1, options.size, options.size, device=device) * 2 - 1
    z = torch.randn(batch_size, Z_DIM, device=device)
    c = torch.zeros(batch_size, 0, device=device)
    optimizers = {"G": lazy_adam(G, 4), "D": lazy_adam(D, 16)}

    def training_phase(name, pipe):
        network, optimizer = {"G": G, "D": D}[name[0]], optimizers[name[0]]
        loss = StyleGAN2Loss(
            device=device,
            G_mapping=G.mapping,
            G_synthesis=G.synthesis,
            D=D,
            augment_pipe=pipe,
            r1_gamma=0.0002 * options.size**2 / batch_size,
        )
        gain = {"Dreg": 16, "Greg": 4}.get(name, 1)

        def run():
            G.requires_grad_(network is G)
            D.requires_grad_(network is D)
            optimizer.zero_grad(set_to_none=True)
            loss.accumulate_gradients(
                phase=name, real_img=x_real, real_c=c, gen_z=z, gen_c=c, sync=True, gain=gain
            )
            network.requires_grad_(False)
            for p in network.parameters():
                if p.grad is not None:
                    torch.nan_to_num(p.grad, nan=0, posinf=1e5, neginf=-1e5, out=p.grad)
            optimizer.step()

        return run

    @torch.no_grad()
    def ema():
        for average, current in zip(G_ema.parameters(), G.parameters()):
            average.copy_(current.lerp(average, 0.999))

    runs = {name: training_phase(name, None) for name in ("Gmain", "Dmain", "Dreg", "Greg")}
    for name in augments:
        pipe = augment.AugmentPipe(**{kind: 1 for kind in PIPES[name]}).to(device)
        pipe.p.copy_(torch.tensor(float(options.aug_p)))
        runs[f"aug@{name}"] = torch.no_grad()(partial(pipe, x_real))
        for phase in ("Gmain", "Dmain", "Dreg"):
            runs[f"{phase}@{name}"] = training_phase(phase, pipe)
    runs["ema"], runs["gen"] = ema, torch.no_grad()(partial(G_ema, z, c))
    return {phase: run for phase, run in runs.items() if phase in phases}


def seconds(run, device):
    "How long a call takes."

    def wait():
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    wait()
    start = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - start


def measure(phase, cases, options):
    "Median and range of the seconds of each case {side: (heap retained?, callable)}, in turn."
    times = {side: [] for side in cases}
    for k in range(options.warm + options.rounds):
        for side in list(cases)[:: 1 - 2 * (k % 2)]:  # forwards and backwards
            retained, run = cases[side]
            if options.device == "cpu":
                heap(retained)
            duration = seconds(run, options.device)
            if k >= options.warm:
                times[side].append(duration)
    gc.collect()
    row = {
        side: {"median": statistics.median(t), "min": min(t), "max": max(t)}
        for side, t in times.items()
    }
    cells = [f"{s:>14} {r['median']:8.4f} [{r['min']:.4f}-{r['max']:.4f}]" for s, r in row.items()]
    print(f"{phase:12}" + "".join(cells), flush=True)
    return row


def step_cost(rows, suffix=""):
    "Seconds of a batch with lazy regularization for each side, if all its phases were timed."
    weights = {
        "Gmain" + suffix: 1,
        "Dmain" + suffix: 1,
        "Greg": 1 / 4,
        "Dreg" + suffix: 1 / 16,
        "ema": 1,
    }
    if not all(phase in rows for phase in weights):
        return {}
    sides = [side for side in rows["ema"] if all(side in rows[phase] for phase in weights)]
    return {
        side: sum(weight * rows[phase][side]["median"] for phase, weight in weights.items())
        for side in sides
    }


def parse_options():
    "The command line."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "peer",
        type=Path,
        nargs="?",
        help="checkout of stylegan2-ada-pytorch; without it only ours is timed",
    )
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--channel-base", type=int, default=16384)
    parser.add_argument("--channel-max", type=int, default=512)
    parser.add_argument("--phases", default=",".join(PHASES), help="separated by commas")
    parser.add_argument("--precisions", default="fp32,bf16", help="of ours")
    parser.add_argument("--aug-p", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm", type=int, default=1, help="rounds that are not counted")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--json",
        type=Path,
        help="also write the table here; phases in it that are not timed now are kept",
    )
    return parser.parse_args()


def main():
    "Time both sides, print the table and write it if asked."
    options = parse_options()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    phases = options.phases.split(",")
    augments = sorted({phase.split("@")[1] for phase in phases if "@" in phase})
    sides = {}
    if options.peer:
        peer = peer_phases(options, phases, augments)
        sides["peer shipped"] = sides["peer retained"] = peer
    for precision in filter(None, options.precisions.split(",")):
        sides[f"ours {precision}"] = our_phases(options, phases, augments, precision)
    earlier = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    rows = earlier.get("phases", {})
    for phase in phases:
        cases = {
            side: (side != "peer shipped", runs[phase])
            for side, runs in sides.items()
            if phase in runs
        }
        rows[phase] = measure(phase, cases, options)
    costs = {"step" + suffix: step_cost(rows, suffix) for suffix in ("", "@bg", "@bgc")}
    for name, cost in costs.items():
        cells = [f"{side:>14} {value / options.batch_size:8.4f}" for side, value in cost.items()]
        if cells:
            print(f"{name:12}" + "".join(cells))
    if options.json:
        settings = {key: str(value) for key, value in vars(options).items()}
        table = {"torch": torch.__version__, "phases": rows, "seconds_per_batch": costs}
        options.json.write_text(json.dumps(settings | table, indent=1) + "\n")


if __name__ == "__main__":
    main()
