"""How colours look to people: OKLab distances under normal and simulated dichromatic vision, WCAG contrast. numpy only.

Simulation: Machado, Oliveira and Fernandes 2009 (doi 10.1109/TVCG.2009.113), severity 1. OKLab: Ottosson 2020.
Contrast: WCAG 2.2, relative luminance.
"""

from __future__ import annotations

import numpy as np

DEFICIENCIES = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_CONES = np.array([
    [0.4122214708, 0.5363325363, 0.0514459929],
    [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
])
TO_LAB = np.array([
    [0.2104542553, 0.7936177850, -0.0040720468],
    [1.9779984951, -2.4285922050, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.8086757660],
])


def linear(colour: str) -> np.ndarray:
    """Linear light of `#rrggbb`."""
    c = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def oklab(light: np.ndarray) -> np.ndarray:
    """Lightness and two opponent axes, nearly even to the eye."""
    return TO_LAB @ np.cbrt(np.maximum(TO_CONES @ light, 0))


def least_distance(colours: list[str], deficiency: str | None = None) -> float:
    """Smallest OKLab distance of two of the colours as seen with a deficiency."""
    seen = []
    for colour in colours:
        light = linear(colour)
        if deficiency:
            light = np.clip(np.array(DEFICIENCIES[deficiency]) @ light, 0, 1)
        seen.append(oklab(light))
    return min(float(np.linalg.norm(a - b)) for i, a in enumerate(seen) for b in seen[:i])


def contrast(first: str, second: str) -> float:
    """WCAG contrast of two colours, 1 to 21."""
    weights = np.array([0.2126, 0.7152, 0.0722])
    a, b = (float(weights @ linear(colour)) for colour in (first, second))
    return (max(a, b) + 0.05) / (min(a, b) + 0.05)
