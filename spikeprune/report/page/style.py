"""The page's style sheet and its script, which shows a mark's numbers beside the pointer."""

from __future__ import annotations

import base64
import hashlib

COLOURS = ("c1", "c2", "c3", "c4", "c5", "c6", "c7")  # classes of curves and bars, after Okabe & Ito's palette
SHADES = 24  # classes s0, s1, … of an ordered set of curves, from the first colour to the second

CSS = """
:root { color-scheme: light dark;
  --paper: #ffffff; --raised: #f6f7f9; --ink: #1b2230; --soft: #5b6575; --rule: #e3e6eb; --cell: #eceff3;
  --depth: #0b5fa5; --on-deep: #ffffff;
  --c1: #0072b2; --c2: #d55e00; --c3: #008f6b; --c4: #b0588f; --c5: #b07a00; --c6: #3a93c9; --c7: #5f6774;
  --c8: #8a5a44; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #11151c; --raised: #191f29; --ink: #e4e8ee; --soft: #98a3b3; --rule: #2a3240; --cell: #212936;
  --depth: #5ab0f2; --on-deep: #0b1119;
  --c1: #56a8e0; --c2: #f0883e; --c3: #3dbb93; --c4: #d88bbb; --c5: #dca834; --c6: #8ccbf2; --c7: #a3adba;
  --c8: #c49a86; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 1200px; padding: 28px 20px 72px; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif; }
h1 { font-size: 26px; line-height: 1.2; font-weight: 650; letter-spacing: -0.01em; margin: 0 0 4px; }
h2 { font-size: 21px; line-height: 1.25; font-weight: 650; margin: 56px 0 4px; padding-top: 18px;
  border-top: 2px solid var(--ink); overflow-wrap: anywhere; }
h3 { font-size: 17px; font-weight: 620; margin: 40px 0 2px; }
p { margin: 4px 0 10px; max-width: 78ch; overflow-wrap: anywhere; }
section { margin: 0; }
a { color: var(--c1); }
.lead, .meta, figcaption, .legend, footer { color: var(--soft); font-size: 13.5px; }
.banner { border-left: 3px solid var(--c5); padding: 2px 0 2px 12px; }
.note { border-left: 3px solid var(--rule); padding: 2px 0 2px 12px; color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 1px; margin: 18px 0 8px; }
.tile { box-shadow: 0 0 0 1px var(--rule); padding: 10px 14px 12px; }
.tile b { display: block; font-size: 24px; line-height: 1.2; font-weight: 620; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 13px; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 326px), 1fr)); gap: 22px 26px;
  align-items: start; margin: 12px 0; }
figure { margin: 0; min-width: 0; max-width: 470px; }
figure.wide { max-width: none; margin: 14px 0; }
.figures figure.wide { margin: 0; }
figcaption { color: var(--ink); font-weight: 560; margin: 0 0 6px; }
svg { display: block; font-family: inherit; }
svg:not([width]) { width: 100%; height: auto; }
svg text { font-size: 11.5px; fill: var(--soft); font-variant-numeric: tabular-nums; }
svg .name { fill: var(--ink); }
svg .number { fill: var(--ink); } svg .number.deep { fill: var(--on-deep); }
.grid { stroke: var(--rule); } .axis { stroke: var(--soft); } .dashed { stroke: var(--soft); stroke-dasharray: 4 3; }
.band { fill: var(--raised); } .noband { fill: transparent; }
.cell { fill: var(--cell); } .depth { fill: var(--depth); }
.line { fill: none; stroke: var(--c); stroke-width: 1.8; stroke-linejoin: round; }
.mark { fill: var(--c); stroke: transparent; stroke-width: 9; } .area { fill: var(--c); }
.spike { stroke: var(--c); stroke-width: 1.7; fill: none; }
.c1 { --c: var(--c1); } .c2 { --c: var(--c2); } .c3 { --c: var(--c3); } .c4 { --c: var(--c4); }
.c5 { --c: var(--c5); } .c6 { --c: var(--c6); } .c7 { --c: var(--c7); } .c8 { --c: var(--c8); }
.legend { margin: 4px 0 0; } .legend span { margin-right: 14px; white-space: nowrap; }
.key { display: inline-block; width: 10px; height: 10px; border-radius: 2px; background: var(--c); margin-right: 5px; }
.scroll { overflow-x: auto; } .scroll:focus-visible { outline: 2px solid var(--c1); outline-offset: 2px; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; margin: 8px 0; }
th, td { padding: 5px 10px; text-align: right; border-bottom: 1px solid var(--rule); font-weight: 400;
  white-space: nowrap; }
thead th { color: var(--soft); font-size: 12.5px; border-bottom: 1px solid var(--soft); }
tbody th { font-weight: 560; } .words { text-align: left; }
td.words { white-space: normal; min-width: 180px; overflow-wrap: anywhere; }
details { margin: 14px 0; } summary { cursor: pointer; color: var(--c1); font-size: 13.5px; }
h4 { font-size: 15px; font-weight: 600; margin: 22px 0 0; }
blockquote { margin: 26px 0 4px; padding: 0; font-size: 15px; font-weight: 560; overflow-wrap: anywhere; }
#tip { position: fixed; z-index: 2; pointer-events: none; background: var(--ink); color: var(--paper);
  font-size: 12.5px; padding: 3px 8px; border-radius: 4px; max-width: min(320px, 90vw); overflow-wrap: anywhere; }
#tip[hidden] { display: none; }
footer { margin-top: 56px; border-top: 1px solid var(--rule); padding-top: 10px; }
@media print { body { max-width: none; padding: 0; } figure, table { break-inside: avoid; } }
"""

SCRIPT = """
(function () {
  var tip = document.getElementById("tip");
  document.addEventListener("pointerover", function (event) {
    var mark = event.target.closest ? event.target.closest("[data-tip]") : null;
    tip.hidden = !mark;
    if (mark) tip.textContent = mark.getAttribute("data-tip");
  });
  document.addEventListener("pointermove", function (event) {
    if (tip.hidden) return;
    var x = Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 6);
    tip.style.left = Math.max(6, x) + "px";
    tip.style.top = Math.max(6, event.clientY - tip.offsetHeight - 12) + "px";
  });
})();
"""

CSS += "".join(
    f".s{i} {{ --c: color-mix(in oklab, var(--c2) {100 * i // (SHADES - 1)}%, var(--c1)); }}\n" for i in range(SHADES)
)


def policy() -> str:
    """What a browser lets the page do: no network, no script but this one, wherever a text came from."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
