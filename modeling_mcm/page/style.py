# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The style of the page, light and dark, and its script, which sends clicks to the server. Nothing is loaded."""

# Clicks on buttons and dots become the events `pick` (a customer) and `ask` (why a label).
SCRIPT = """
element.addEventListener('click', event => {
  const chosen = event.target.closest('[data-customer], [data-label]');
  if (!chosen) return;
  const data = chosen.dataset;
  if (data.customer !== undefined) trigger('pick', {customer: data.customer});
  else {
    trigger('ask', {task: data.task, label: data.label});
    document.querySelector('#timeline')?.scrollIntoView({block: 'nearest', behavior: 'smooth'});
  }
});
"""

CSS = """
.gradio-container {
  --ink: #1d2733; --soft: #5b6876; --line: #dfe5ea; --paper: #ffffff; --ground: #f5f7f9;
  --accent: #0b6e75; --wash: #d9eef0; --warm: #b4471f; --k0: #33658a; --k1: #c58b1a; --k2: #7a5195; --k3: #3f8f5f;
  --kx: #98a3ad; max-width: 1240px !important; margin: 0 auto !important; color: var(--ink);
}
.dark .gradio-container, .dark.gradio-container, .gradio-container.dark {
  --ink: #e8edf2; --soft: #a3b0bd; --line: #34404c; --paper: #1b232c; --ground: #12181f;
  --accent: #4fc3cc; --wash: #163c41; --warm: #f2936b; --k0: #7fb2dc; --k1: #e5b95c; --k2: #c39bdd; --k3: #7fcf9f;
  --kx: #6c7985;
}
.gradio-container h1 { font-size: 1.5rem; font-weight: 700; margin: 0.2rem 0 0; letter-spacing: -0.01em; }
.gradio-container h2 { font-size: 1.05rem; margin: 0.6rem 0 0.5rem; color: var(--ink); font-weight: 650; }
.gradio-container h2 small { color: var(--soft); font-weight: 400; font-size: 0.85rem; margin-left: 0.7rem; }
.gradio-container .html-container, .gradio-container .block.padded:has(> .html-container) { padding: 0 !important; }
.placeholder { border: 1px dashed var(--line); border-radius: 10px; padding: 2rem 1rem !important; }
.placeholder { text-align: center; }
.gradio-container h3 { font-size: 0.95rem; font-weight: 600; margin: 0 0 0.5rem; color: var(--ink); }
.lead, .legend, .chips, .note { color: var(--soft); margin: 0.2rem 0; font-size: 0.88rem; }
.legend { display: flex; flex-wrap: wrap; gap: 0.2rem 1rem; }
.legend span { display: inline-flex; align-items: center; gap: 0.35rem; }
.legend i { width: 0.7rem; height: 0.7rem; border-radius: 2px; display: inline-block; background: var(--kx); }
.legend .after { background: var(--line); } .legend .for { background: var(--accent); }
.legend .against { background: var(--warm); }
.chips { display: flex; flex-wrap: wrap; gap: 0.4rem; }
.chips span { border: 1px solid var(--line); background: var(--paper); border-radius: 999px; padding: 0.1rem 0.6rem; }
.chips b { color: var(--ink); font-weight: 600; }
.timeline { overflow-x: auto; background: var(--paper); border: 1px solid var(--line); border-radius: 10px;
  padding: 8px; contain: inline-size; direction: rtl; } /* a narrow screen begins with the latest visits */
.timeline svg { width: 100%; min-width: 640px; height: auto; display: block; direction: ltr; }
.timeline text { fill: var(--soft); font-size: 13px; text-anchor: middle; }
.timeline .axis { stroke: var(--line); stroke-width: 1; }
.timeline .after { fill: var(--line); opacity: 0.45; }
.timeline .cutoff { stroke: var(--ink); stroke-width: 1.5; stroke-dasharray: 4 3; }
.visit { fill: var(--kx); } .hidden-visit { opacity: 0.45; }
.kind0 { fill: var(--k0); } .legend .kind0 { background: var(--k0); }
.kind1 { fill: var(--k1); } .legend .kind1 { background: var(--k1); }
.kind2 { fill: var(--k2); } .legend .kind2 { background: var(--k2); }
.kind3 { fill: var(--k3); } .legend .kind3 { background: var(--k3); }
.visit.weighed { fill: var(--kx); opacity: 0.4; }
.visit.weighed.for { fill: color-mix(in srgb, var(--accent) calc(20% + 80% * var(--weight)), var(--kx)); }
.visit.weighed.against { fill: color-mix(in srgb, var(--warm) calc(20% + 80% * var(--weight)), var(--kx)); }
.visit.weighed.for, .visit.weighed.against { opacity: calc(0.4 + 0.6 * var(--weight)); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); gap: 12px; }
.card, .why, .moves { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 12px; }
.card h3 { display: flex; justify-content: space-between; text-transform: capitalize; }
.card small { color: var(--soft); font-weight: 400; text-transform: none; }
.card button, .alike button {
  position: relative; display: grid; grid-template-columns: 1fr auto; gap: 0 0.6rem; width: 100%; text-align: left;
  padding: 0.32rem 0.5rem; margin: 2px 0; border: 1px solid transparent; border-radius: 6px; background: none;
  color: var(--ink); font: inherit; font-size: 0.86rem; cursor: pointer; overflow: hidden;
}
.card button:hover, .alike button:hover { border-color: var(--accent); }
.card button:focus-visible, .alike button:focus-visible, .timeline:focus-visible {
  outline: 3px solid var(--accent); outline-offset: 1px;
}
.card button[aria-pressed='true'] { border-color: var(--accent); box-shadow: inset 3px 0 0 var(--accent); }
.card .bar { position: absolute; inset: 0 auto 0 0; background: var(--wash); z-index: 0; border-radius: 6px; }
.card .name, .card .share { position: relative; z-index: 1; } .share { font-variant-numeric: tabular-nums; }
.card em { font-style: normal; font-size: 0.74rem; margin-left: 0.5rem; white-space: nowrap; font-weight: 600; }
.card em.next { color: var(--accent); } .card em.later { color: var(--soft); font-weight: 400; }
.why p { margin: 0 0 0.6rem; font-size: 0.9rem; color: var(--ink); }
.split { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: 1.5rem; }
.why ol { list-style: none; margin: 0; padding: 0; font-size: 0.86rem; }
.why li { display: grid; grid-template-columns: 6rem 1fr; gap: 0 0.6rem; padding: 0.25rem 0; align-items: center;
  border-bottom: 1px solid var(--line); }
.why li .when { color: var(--soft); font-variant-numeric: tabular-nums; grid-row: span 2; }
.why li .bar { display: inline-block; height: 8px; border-radius: 4px; background: var(--accent); grid-column: 2;
  min-width: 3px; }
.why li .share { grid-column: 2; } .why li .values { grid-column: 2; color: var(--soft); }
.why li .values b { color: var(--accent); } .why li.rest { display: block; color: var(--soft); border: 0; }
.why table, .moves table { font-size: 0.84rem; border-collapse: collapse; color: var(--ink); }
.why details { max-width: 15rem; font-size: 0.86rem; } .why summary { cursor: pointer; color: var(--soft); }
.why table, .moves table, .why tr, .moves tr { border: 0 !important; }
.why td, .moves td, .moves th { padding: 0.22rem 0.6rem !important; border: 0 !important;
  border-bottom: 1px solid var(--line) !important; }
.why td + td, .moves td + td, .moves th { text-align: right; font-variant-numeric: tabular-nums; font-weight: 400; }
.moves table { width: 100%; } .moves .up { color: var(--accent); } .moves .down { color: var(--warm); }
.alike { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 6px; }
.alike .name { font-weight: 600; } .alike .values { grid-column: 1 / -1; color: var(--soft); font-size: 0.8rem; }
.map { width: 100%; height: auto; background: var(--paper); border: 1px solid var(--line); border-radius: 10px; }
.map circle { fill: var(--kx); opacity: 0.55; cursor: pointer; } .map circle:hover { fill: var(--k1); opacity: 1; }
.map .near { fill: var(--accent); opacity: 1; }
.map .chosen { fill: var(--warm); opacity: 1; stroke: var(--paper); stroke-width: 2; }
@media (max-width: 640px) { .split { grid-template-columns: 1fr; } .gradio-container h1 { font-size: 1.25rem; } }
@media (prefers-reduced-motion: reduce) { * { transition: none !important; animation: none !important; } }
"""
