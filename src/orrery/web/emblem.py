"""The orrery of a day: eight planets at the mean longitudes they have then, on equally spaced rings, as inline SVG.

Mean longitude L = L0 + n T in degrees, T in Julian centuries since 2000-01-01 12:00 (Standish's Keplerian elements for
1800-2050). The rings are schematic, as in every orrery; the angles are not. Seen from the north, so planets go against
the clock. Drawn by attributes alone: the page's security policy allows no style in markup.
"""

from __future__ import annotations

import datetime as dt
import math

PLANETS = (  # name, L0 in degrees, degrees a century, radius of the dot
    ("Mercury", 252.25032350, 149472.67411175, 1.5),
    ("Venus", 181.97909950, 58517.81538729, 2.1),
    ("Earth", 100.46457166, 35999.37244981, 2.3),
    ("Mars", -4.55343205, 19140.30268499, 1.8),
    ("Jupiter", 34.39644051, 3034.74612775, 4.2),
    ("Saturn", 49.95424423, 1222.49362201, 3.6),
    ("Uranus", 313.23810451, 428.48202785, 2.9),
    ("Neptune", -55.12002969, 218.45945325, 2.8),
)
_J2000 = dt.date(2000, 1, 1)
_INNER, _STEP, _SUN = 15.0, 10.6, 5.5  # of a picture 200 wide


def longitudes(day: dt.date) -> dict[str, float]:
    """Mean ecliptic longitude of each planet at noon of a day, in [0, 360) degrees."""
    centuries = (day - _J2000).days / 36525
    return {name: (start + rate * centuries) % 360 for name, start, rate, _ in PLANETS}


def draw(day: dt.date) -> str:
    """The picture, 200 units wide, for people who see it; those who do not are told nothing they would miss."""
    found = longitudes(day)
    rings, dots = [], []
    for number, (name, _, _, size) in enumerate(PLANETS):
        radius = _INNER + _STEP * number
        angle = math.radians(found[name])
        x, y = radius * math.cos(angle), -radius * math.sin(angle)
        rings.append(f'<circle r="{radius:.1f}"/>')
        kind = ' class="earth"' if name == "Earth" else ""
        dots.append(f'<circle{kind} cx="{x:.2f}" cy="{y:.2f}" r="{size}"/>')
        if name == "Saturn":
            dots.append(
                f'<ellipse cx="{x:.2f}" cy="{y:.2f}" rx="6.4" ry="1.7" transform="rotate(-24 {x:.2f} {y:.2f})"/>'
            )
    return (
        '<svg class="planets" viewBox="-100 -100 200 200" aria-hidden="true" focusable="false">'
        f'<g class="rings">{"".join(rings)}</g><circle class="sun" r="{_SUN}"/><g class="dots">{"".join(dots)}</g></svg>'
    )
