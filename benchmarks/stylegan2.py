"""Time StyleGAN2 training and generation against NVIDIA's published code, phase by phase, call by call in turn.

    git clone https://github.com/NVlabs/stylegan2-ada-pytorch PEER      (commit d72cc7d; outside this project, its licence is non-commercial)
    python benchmarks/stylegan2.py PEER --size 64 --rounds 3 --json stylegan2_64.json
    python benchmarks/stylegan2.py PEER --size 256 --phases Gmain,Dmain,Dreg,Greg,ema,gen,aug@bgc

The peer is imported and runs with its reference operations (nothing of it is compiled), in fp32, with the channels of its `auto`
configuration. Each phase is called on a batch and includes the optimiser's step:

Gmain, Dmain   the two losses; ours takes the generated images of Gmain for Dmain too, as its training does, the peer makes new ones
Dreg, Greg     R1 and path length (on half a batch)
ema, gen       the running average, and generation in evaluation mode
aug@bgc        adaptive augmentation alone, p = 1; Gmain@bgc, Dmain@bgc, Dreg@bgc: the phase through it

`step` is the cost of a training image with lazy regularisers: (Gmain + Dmain + Greg/4 + Dreg/16 + ema) / batch. The peer is timed
with the heap as the system gives it ("shipped") and with freed memory kept ("kept", `core.keep_heap`, as our runs have it).
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
from medgan_nb.training.registry import recipe
from medgan_nb.training.step import average, d_step, finish, g_step, generate, start

MAIN = ("Gmain", "Dmain", "Dreg", "Greg", "ema", "gen")
BLIT = ("xflip", "rotate90", "xint")
GEOMETRY = ("scale", "rotate", "aniso", "xfrac")
COLOUR = ("brightness", "contrast", "lumaflip", "hue", "saturation")
PIPES = {"blit": BLIT, "bg": BLIT + GEOMETRY, "bgc": BLIT + GEOMETRY + COLOUR}


def phases(res, batch, device, channels, phases, augs, seed, precision="bf16", aug_p=1.0):
    "{phase: callable} of this project; `channels` holds base, max and mapping_layers."
    settings = dict(
        config="auto",
        batch=batch,
        channel_base=channels["base"],
        channel_max=channels["max"],
        mapping_layers=channels["mapping_layers"],
    )
    plain = recipe("stylegan2", res, **settings)
    state = start(replace(plain, penalties=()), seed, device, precision)
    x_real = (torch.rand(batch, 1, res, res, device=device) * 2 - 1).contiguous(
        memory_format=torch.channels_last
    )
    with torch.no_grad():
        x_fake, _ = generate(state, batch)

    def network_phases(suffix):
        def g_main():
            return g_step(state, x_real, *generate(state, batch))

        def d_main():
            return d_step(state, x_real, None, x_fake, None)

        def regulariser(penalty, optimiser):
            def run():
                optimiser.zero_grad(set_to_none=True)
                value = penalty.weight * penalty.every * penalty.value(state, x_real, x_fake, None)
                finish(state, optimiser, value, {}, penalty.name)

            return run

        r1, path_length = plain.penalties
        return {
            "Gmain" + suffix: g_main,
            "Dmain" + suffix: d_main,
            "Dreg" + suffix: regulariser(r1, state.opt_D),
            "Greg" + suffix: regulariser(path_length, state.opt_G),
        }

    def with_pipe(pipe, run):
        def call():
            kept, state.augment = state.augment, pipe
            try:
                return run()
            finally:
                state.augment = kept

        return call

    for penalty in plain.penalties:
        if penalty.memory:
            state.memory[penalty.name] = penalty.memory().to(device)
    found = network_phases("")
    for name in augs:
        pipe = AdaptiveAugment(name, p=aug_p, target=None).to(device)
        found[f"aug@{name}"] = torch.no_grad()(partial(pipe, x_real))
        found |= {
            key: with_pipe(pipe, run)
            for key, run in network_phases("@" + name).items()
            if key[:4] != "Greg"
        }
    found["ema"] = partial(average, state)
    G = state.G_ema.eval()
    z = torch.randn(batch, plain.z_dim, device=device)

    @torch.inference_mode()
    def gen():
        with state.autocast():
            return G(z)

    found["gen"] = gen
    return {key: run for key, run in found.items() if key in phases}


def peer_phases(folder, res, batch, device, channels, phases, augs, seed, aug_p=1.0):
    "The same for the peer's checkout in `folder`."
    sys.path.insert(0, str(folder))
    from torch_utils.ops import bias_act, upfirdn2d
    from training import augment, networks
    from training.loss import StyleGAN2Loss

    upfirdn2d._init = bias_act._init = lambda: False
    torch.manual_seed(seed)
    size = dict(
        channel_base=channels["base"], channel_max=channels["max"], num_fp16_res=0, conv_clamp=None
    )
    common = dict(c_dim=0, img_resolution=res, img_channels=1)
    G = networks.Generator(
        z_dim=512,
        w_dim=512,
        mapping_kwargs=dict(num_layers=channels["mapping_layers"]),
        synthesis_kwargs=size,
        **common,
    )
    D = networks.Discriminator(
        **common, **size, epilogue_kwargs=dict(mbstd_group_size=min(batch, 4))
    )
    G, D = G.train().to(device), D.train().to(device)
    G_ema = (
        networks.Generator(
            z_dim=512,
            w_dim=512,
            mapping_kwargs=dict(num_layers=channels["mapping_layers"]),
            synthesis_kwargs=size,
            **common,
        )
        .eval()
        .requires_grad_(False)
        .to(device)
    )
    x_real = torch.rand(batch, 1, res, res, device=device) * 2 - 1
    z, c = torch.randn(batch, 512, device=device), torch.zeros(batch, 0, device=device)
    optimisers = {}
    for network, name, every in ((G, "G", 4), (D, "D", 16)):
        share = every / (every + 1)
        optimisers[name] = torch.optim.Adam(
            network.parameters(), lr=0.0025 * share, betas=(0.0, 0.99**share), eps=1e-8
        )

    def phase(name, pipe):
        network, optimiser = {"G": G, "D": D}[name[0]], optimisers[name[0]]
        loss = StyleGAN2Loss(
            device=device,
            G_mapping=G.mapping,
            G_synthesis=G.synthesis,
            D=D,
            augment_pipe=pipe,
            r1_gamma=0.0002 * res**2 / batch,
        )
        gain = {"Dreg": 16, "Greg": 4}.get(name, 1)

        def run():
            G.requires_grad_(network is G)
            D.requires_grad_(network is D)
            optimiser.zero_grad(set_to_none=True)
            loss.accumulate_gradients(
                phase=name, real_img=x_real, real_c=c, gen_z=z, gen_c=c, sync=True, gain=gain
            )
            network.requires_grad_(False)
            for p in network.parameters():
                if p.grad is not None:
                    torch.nan_to_num(p.grad, nan=0, posinf=1e5, neginf=-1e5, out=p.grad)
            optimiser.step()

        return run

    @torch.no_grad()
    def ema():
        for kept, new in zip(G_ema.parameters(), G.parameters()):
            kept.copy_(new.lerp(kept, 0.999))

    found = {name: phase(name, None) for name in ("Gmain", "Dmain", "Dreg", "Greg")}
    for name in augs:
        pipe = augment.AugmentPipe(**{kind: 1 for kind in PIPES[name]}).to(device)
        pipe.p.copy_(torch.tensor(float(aug_p)))
        found[f"aug@{name}"] = torch.no_grad()(partial(pipe, x_real))
        found |= {f"{key}@{name}": phase(key, pipe) for key in ("Gmain", "Dmain", "Dreg")}
    found["ema"], found["gen"] = ema, torch.no_grad()(partial(G_ema, z, c))
    return {key: run for key, run in found.items() if key in phases}


def seconds(run, device):
    "How long a call takes."
    wait = torch.cuda.synchronize if device.startswith("cuda") else (lambda: None)
    wait()
    begun = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - begun


def measure(name, cases, rounds, warm, device):
    "Seconds of each case {who: (kept heap?, callable)}, taken in turn, forwards and backwards."
    times = {who: [] for who in cases}
    for number in range(warm + rounds):
        for who in list(cases)[:: 1 - 2 * (number % 2)]:
            kept, run = cases[who]
            if device == "cpu":
                heap(kept)
            taken = seconds(run, device)
            if number >= warm:
                times[who].append(taken)
    gc.collect()
    row = {
        who: {"median": statistics.median(t), "min": min(t), "max": max(t)}
        for who, t in times.items()
    }
    print(
        f"{name:12}"
        + "".join(
            f"{who:>14} {r['median']:8.4f} [{r['min']:.4f}-{r['max']:.4f}]"
            for who, r in row.items()
        ),
        flush=True,
    )
    return row


def step_cost(rows, suffix=""):
    "Seconds of a training image for each side, where all its phases were timed."
    parts = {
        "Gmain" + suffix: 1,
        "Dmain" + suffix: 1,
        "Greg": 1 / 4,
        "Dreg" + suffix: 1 / 16,
        "ema": 1,
    }
    if not all(part in rows for part in parts):
        return {}
    sides = [who for who in rows["ema"] if all(who in rows[part] for part in parts)]
    return {
        who: sum(share * rows[part][who]["median"] for part, share in parts.items())
        for who in sides
    }


def main():
    "Time both sides and print or write the table."
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
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--channel-base", type=int, default=16384)
    parser.add_argument("--phases", default=",".join(MAIN), help="separated by commas")
    parser.add_argument("--precisions", default="fp32,bf16", help="of ours")
    parser.add_argument("--aug-p", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--json",
        type=Path,
        help="also write the table to this file; phases that it holds and that are not timed now stay in it",
    )
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    names = options.phases.split(",")
    common = dict(
        res=options.size,
        batch=options.batch,
        device=options.device,
        phases=names,
        seed=0,
        aug_p=options.aug_p,
        channels={"base": options.channel_base, "max": 512, "mapping_layers": 2},
        augs=sorted({name.split("@")[1] for name in names if "@" in name}),
    )
    sides = {}
    if options.peer:
        sides["peer shipped"] = sides["peer kept"] = peer_phases(options.peer, **common)
    for precision in filter(None, options.precisions.split(",")):
        sides[f"ours {precision}"] = phases(**common, precision=precision)
    before = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    rows = before.get("phases", {})
    for name in names:
        cases = {
            who: (who != "peer shipped", found[name])
            for who, found in sides.items()
            if name in found
        }
        rows[name] = measure(name, cases, options.rounds, options.warm, options.device)
    costs = {"step" + suffix: step_cost(rows, suffix) for suffix in ("", "@bg", "@bgc")}
    for name, cost in costs.items():
        if cost:
            print(
                f"{name:12}"
                + "".join(f"{who:>14} {value / options.batch:8.4f}" for who, value in cost.items())
            )
    if options.json:
        settings = {key: str(value) for key, value in vars(options).items()} | {
            "torch": torch.__version__
        }
        options.json.write_text(
            json.dumps(settings | {"phases": rows, "seconds_a_batch": costs}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
