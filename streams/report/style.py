"""The report's style sheet and script, inside the page: it opens from a folder, an e-mail or a ticket alike.

Colours are from Okabe and Ito's palette for colour-blind readers, darker on light ground and lighter on dark;
lines differ in dash and width as well, and every state that has a colour also has a word.
"""

CSS = """
:root { color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1b2330; --soft: #5a6575; --rule: #d9dee6; --lane: #eef1f5;
  --champion: #00805c; --served: #6b7f78;
  --continuous: #0067a8; --frozen: #c24e00; --challenger: #8b5a9f; --drift: #b3123f;
  --good: #00704f; --bad: #b3123f; --bar: #7fa8cc; --heat: 0, 88, 150;
  --band0: #d5dbe5; --band1: #b9e0d0; --band2: #f3dcb5; --band3: #dccbe6; }
@media (prefers-color-scheme: dark) { :root {
  --page: #11151c; --card: #1a202a; --ink: #e8ecf2; --soft: #a3adbb; --rule: #343d4b; --lane: #232b37;
  --champion: #35c99a; --served: #93a8a0;
  --continuous: #5cb3ef; --frozen: #ff9a4d; --challenger: #c79ada; --drift: #ff6f91;
  --good: #4fd6a8; --bad: #ff7d9b; --bar: #4d7fae; --heat: 110, 190, 255;
  --band0: #3a4453; --band1: #1f5646; --band2: #5d4820; --band3: #4d3a5c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 27px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -.01em; }
h2 { font-size: 19px; margin: 0 0 2px; }
p { margin: 6px 0; }
.lead { font-size: 17px; max-width: 76ch; }
.soft, .note { color: var(--soft); } .note { font-size: 14px; max-width: 88ch; margin: 2px 0 12px; }
section { background: var(--card); border: 1px solid var(--rule); border-radius: 12px; padding: 18px 20px;
  margin-top: 18px; }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: 12px; margin-top: 18px; }
.tile { background: var(--card); border: 1px solid var(--rule); border-radius: 12px; padding: 12px 16px; }
.tile b { display: block; font-size: 23px; line-height: 1.25; font-variant-numeric: tabular-nums;
  font-weight: 650; }
.tile span { display: block; font-size: 13.5px; color: var(--soft); line-height: 1.35; }
.arms { grid-template-columns: repeat(3, 1fr); }
.arms .tile { border-left: 5px solid var(--rule); } .arms b { font-size: 32px; }
.arms .frozen { border-left-color: var(--frozen); }
.arms .continuous { border-left-color: var(--continuous); }
.arms .champion { border-left-color: var(--champion); }
.arms .served { border-left-color: var(--served); }
.good { color: var(--good) !important; } .bad { color: var(--bad) !important; }
.missing { border-left: 5px solid var(--frozen); }
.missing ul { margin: 6px 0 0; padding-left: 20px; }
.pair { display: grid; gap: 18px; margin-top: 18px; } .pair > section { margin: 0; min-width: 0; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font: 12px system-ui, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
  fill: var(--ink); }
svg .tick { fill: var(--soft); } svg .axis-title { fill: var(--soft); font-size: 12.5px; }
.grid { stroke: var(--rule); } .axis { stroke: var(--soft); } .lane { fill: var(--lane); }
.line { fill: none; stroke-linejoin: round; }
.line.champion { stroke: var(--champion); stroke-width: 4.5; stroke-opacity: .75; }
.line.served { stroke: var(--served); stroke-width: 1.4; }
.line.continuous { stroke: var(--continuous); stroke-width: 1.8; }
.line.frozen { stroke: var(--frozen); stroke-width: 2.2; stroke-dasharray: 7 4; }
.line.challenger { stroke: var(--challenger); stroke-width: 1.2; stroke-dasharray: 2 3; }
.line.predicted { stroke: var(--champion); stroke-width: 1.8; }
.area { fill: var(--bar); fill-opacity: .45; } .bar { fill: var(--bar); }
svg .end { font-weight: 600; } svg .end.champion { fill: var(--champion); } svg .end.served { fill: var(--served); }
svg .end.continuous { fill: var(--continuous); } svg .end.frozen { fill: var(--frozen); }
.drift-line { stroke: var(--drift); stroke-width: 1.6; stroke-dasharray: 5 3; }
svg .drift-text { fill: var(--drift); font-weight: 600; }
svg .swap-text { fill: var(--champion); font-weight: 600; }
.swap-line { stroke: var(--champion); stroke-width: 1.6; }
.pill { fill: var(--card); stroke: var(--soft); stroke-width: 1.3; }
.pill.alarm { stroke: var(--drift); } .pill.swap { fill: var(--champion); stroke: var(--champion); }
svg .pill-text { font-size: 11px; font-weight: 600; } .pill.swap + .pill-text { fill: var(--card); }
svg a:hover .pill, svg a:focus .pill { stroke-width: 2.6; }
.band0 { fill: var(--band0); } .band1 { fill: var(--band1); } .band2 { fill: var(--band2); }
.band3 { fill: var(--band3); } svg .band-text { font-weight: 600; font-size: 11.5px; }
.quantile { stroke: var(--ink); stroke-width: 1.3; } svg .quantile-text { font-weight: 600;
  paint-order: stroke; stroke: var(--card); stroke-width: 4px; stroke-linejoin: round; }
.heat0 { fill: rgba(var(--heat), .13); } .heat1 { fill: rgba(var(--heat), .32); }
.heat2 { fill: rgba(var(--heat), .55); }
.heat3 { fill: rgba(var(--heat), .78); } .heat4 { fill: rgb(var(--heat)); }
.cross { stroke: var(--soft); stroke-dasharray: 3 3; visibility: hidden; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; font-size: 14px; margin: 8px 0 10px; padding: 0;
  list-style: none; }
.legend svg { display: inline-block; width: 34px; height: 12px; vertical-align: middle; margin-right: 7px; }
.narrow { display: none; }
.tip { position: fixed; z-index: 9; pointer-events: none; background: var(--card); color: var(--ink);
  opacity: .97;
  border: 1px solid var(--soft); border-radius: 8px; padding: 6px 10px; font-size: 13px; display: none;
  font-variant-numeric: tabular-nums; white-space: pre; box-shadow: 0 4px 14px rgba(0, 0, 0, .25); }
table { border-collapse: collapse; width: 100%; font-size: 14.5px; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--soft); font-weight: 600; font-size: 13px; }
th, td { padding: 7px 12px 7px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
tr:last-child td { border-bottom: 0; } td.n, th.n { text-align: right; white-space: nowrap; }
th:last-child, td:last-child { padding-right: 0; }
.scroll { overflow-x: auto; }
.timeline td { overflow-wrap: anywhere; } .timeline .when, .timeline .number { white-space: nowrap; }
.timeline ul { margin: 4px 0 0; padding-left: 18px; color: var(--soft); }
.timeline tr:target { background: var(--lane); }
.what { font-weight: 650; } .what.alarm { color: var(--drift); } .what.swap { color: var(--champion); }
.what.back { color: var(--bad); }
a { color: var(--continuous); }
details { margin-top: 12px; } summary { cursor: pointer; color: var(--soft); font-size: 14px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 3px 18px; margin: 8px 0 0;
  font-size: 14.5px; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; } dd ul { margin: 0; padding-left: 18px; }
@media (min-width: 900px) { .pair { grid-template-columns: 1fr 1fr; } }
@media (max-width: 700px) { main { padding: 18px 10px 40px; } section { padding: 14px 12px; }
h1 { font-size: 23px; }
  .wide { display: none; } .narrow { display: block; } .tiles { grid-template-columns: 1fr 1fr; }
  .arms { grid-template-columns: 1fr; } dl { grid-template-columns: 1fr; } dd { margin-bottom: 6px; }
  .timeline, .timeline tbody, .timeline tr, .timeline td { display: block; }
  .timeline thead { display: none; }
  .timeline td { border: 0; padding: 1px 0; } .timeline tr { border-bottom: 1px solid var(--rule);
    padding: 9px 0; } }
@media print { body { background: #fff; } section, .tile { break-inside: avoid; } }
"""

JS = """
const tip = document.getElementById('tip');
for (const svg of document.querySelectorAll('svg.hover')) {
  const data = JSON.parse(document.getElementById('data-' + svg.dataset.series).textContent);
  const [left, right, x0, x1] = ['left', 'right', 'x0', 'x1'].map(name => Number(svg.dataset[name]));
  const cross = svg.querySelector('.cross');
  const hide = () => { tip.style.display = 'none'; cross.style.visibility = 'hidden'; };
  svg.addEventListener('pointerleave', hide);
  svg.addEventListener('pointermove', event => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    if (at.x < left || at.x > right) return hide();
    const wanted = x0 + (at.x - left) / (right - left) * (x1 - x0);
    let i = 0;
    data.x.forEach((x, k) => { if (Math.abs(x - wanted) < Math.abs(data.x[i] - wanted)) i = k; });
    const place = left + (data.x[i] - x0) / (x1 - x0) * (right - left);
    cross.setAttribute('x1', place); cross.setAttribute('x2', place); cross.style.visibility = 'visible';
    const rows = data.series.filter(s => s.values[i] !== null)
      .map(s => s.name + '  ' + s.values[i].toLocaleString('en', {maximumFractionDigits: 3}));
    tip.textContent = [data.labels[i], ...rows].join('\\n');
    tip.style.display = 'block';
    const room = innerWidth - tip.offsetWidth - 12;
    tip.style.left = Math.max(4, Math.min(event.clientX + 16, room)) + 'px';
    tip.style.top = Math.max(4, event.clientY - tip.offsetHeight - 14) + 'px';
  });
}
"""
