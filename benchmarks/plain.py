"""Adversarial training with a contrastive loss as public code writes it: what ours is measured against.

float32, channels first, every operation by itself; the attack differentiates the loss by all parameters with the
network in training mode; SupCon holds the whole similarity matrix; images are transformed one by one by Pillow, as
torchvision does, in the workers of a DataLoader. Written to be that code at its best: no copies, waits or
conversions are added.
"""

import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from anchor_robust.data import ImageSet
from anchor_robust.models import Classifier, backbone

Picture = Image.Image
VIEWS = {1: ("adversarial",), 2: ("augmented", "adversarial"), 3: ("clean", "augmented", "adversarial")}


def light(image: Picture) -> Picture:
    """RandomCrop(padding=4) and RandomHorizontalFlip."""
    side, padded = image.width, ImageOps.expand(image, border=4)
    left, top = random.randint(0, 8), random.randint(0, 8)
    return flipped(padded.crop((left, top, left + side, top + side)))


def flipped(image: Picture) -> Picture:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else image


def strong(image: Picture) -> Picture:
    """RandomResizedCrop, RandomHorizontalFlip, ColorJitter(0.4, 0.4, 0.4, 0.1) and RandomGrayscale, as SupCon's."""
    image = flipped(resized_crop(image))
    if random.random() < 0.8:
        image = jittered(image)
    return image.convert("L").convert("RGB") if random.random() < 0.2 else image


def resized_crop(image: Picture) -> Picture:
    side = image.width
    for _ in range(10):
        area = random.uniform(0.2, 1) * side * side
        ratio = float(np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3))))
        width, height = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < width <= side and 0 < height <= side:
            left, top = random.randint(0, side - width), random.randint(0, side - height)
            return image.crop((left, top, left + width, top + height)).resize((side, side), Image.Resampling.BILINEAR)
    return image


def jittered(image: Picture) -> Picture:
    steps: list[Callable[[Picture], Picture]] = [
        lambda image: ImageEnhance.Brightness(image).enhance(random.uniform(0.6, 1.4)),
        lambda image: ImageEnhance.Contrast(image).enhance(random.uniform(0.6, 1.4)),
        lambda image: ImageEnhance.Color(image).enhance(random.uniform(0.6, 1.4)),
        turned,
    ]
    random.shuffle(steps)
    for step in steps:
        image = step(image)
    return image


def turned(image: Picture) -> Picture:
    hue, saturation, value = image.convert("HSV").split()
    turn = np.uint8(random.randrange(-25, 26) % 256)
    moved = Image.fromarray(np.asarray(hue) + turn)
    return Image.merge("HSV", (moved, saturation, value)).convert("RGB")


def pixels(image: Picture) -> Tensor:
    """ToTensor."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)


class Pictures(Dataset[tuple[Tensor, Tensor, int]]):
    """The lightly and the strongly augmented image, and its label."""

    def __init__(self, images: ImageSet) -> None:
        self.images, self.labels = images.images.permute(0, 2, 3, 1).numpy(), images.labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        image = Image.fromarray(self.images[index])
        return pixels(light(image)), pixels(strong(image)), self.labels[index]


def batches(
    images: ImageSet, batch: int, workers: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches on the device without end."""
    loader = DataLoader(
        Pictures(images),
        batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )
    while True:
        for clean, augmented, y in loader:
            yield tuple(each.to(device, non_blocking=True) for each in (clean, augmented, y))


def network(name: str, images: ImageSet, device: torch.device) -> Classifier:
    """The same architecture as ours, with its normalisation and projection head."""
    mean, std = images.channel_statistics()
    shape = images.shape
    return Classifier(backbone(name, len(images.classes), shape), mean, std, projection_width=128).to(device)


def attack(net: nn.Module, x: Tensor, y: Tensor, steps: int, eps: float = 0.031, step_size: float = 0.007) -> Tensor:
    """PGD in training mode: loss.backward() reaches the parameters as well."""
    x_adv = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)
    for _ in range(steps):
        x_adv.requires_grad_()
        net.zero_grad()
        F.cross_entropy(net(x_adv)[0], y).backward()
        moved = x_adv.detach() + step_size * x_adv.grad.sign()
        x_adv = torch.min(torch.max(moved, x - eps), x + eps).clamp(0, 1)
    return x_adv.detach()


def supcon(embeddings: Sequence[Tensor], y: Tensor, temperature: float = 0.1) -> Tensor:
    """Khosla et al., arXiv 2004.11362, with the whole similarity matrix at once."""
    features, labels = torch.cat(list(embeddings)), y.repeat(len(embeddings))
    logits = features @ features.T / temperature
    logits = logits - logits.max(dim=1, keepdim=True).values.detach()
    others = 1 - torch.eye(len(labels), device=y.device)
    positive = (labels[:, None] == labels).float() * others
    log_probability = logits - torch.log((torch.exp(logits) * others).sum(1, keepdim=True))
    return -((positive * log_probability).sum(1) / positive.sum(1).clamp(min=1)).mean()


def step(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: tuple[Tensor, Tensor, Tensor],
    attack_steps: int,
    views: int = 2,
) -> Tensor:
    """One update: attack, one pass of all the views, cross-entropy on the attacked one, contrast over all."""
    clean, augmented, y = batch
    net.train()
    seen = {"clean": clean, "augmented": augmented, "adversarial": attack(net, clean, y, attack_steps)}
    logits, embeddings = net(torch.cat([seen[name] for name in VIEWS[views]]))
    loss = F.cross_entropy(logits.chunk(views)[-1], y) + 0.5 * supcon(embeddings.chunk(views), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss
