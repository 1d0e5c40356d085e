__version__ = "0.1.0"


def load(folder, name: str = "", device: str = "cpu"):
    """The trained generator of a run or of a shared folder: see `training.generator.load`.

    `load(folder).sample(n, label=None, seed=0, psi=1.0)` gives images (n, 1, H, W) in [-1, 1].
    """
    from medgan_nb.training import generator

    return generator.load(folder, name, device)
