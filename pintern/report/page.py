"""Style and script of the report's page, kept inline so that one file is the whole report."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c2126; --soft: #5d6770; --paper: #fbfbfa;
  --card: #ffffff; --line: #dfe3e6; --good: #00694c; --bad: #a83f00; --accent: #00609a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaec; --soft: #a3adb5; --paper: #14171a;
  --card: #1d2226; --line: #343b41; --good: #4fd1a5; --bad: #ff9a5c; --accent: #6bb8ee; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; color: var(--ink);
  background: var(--paper); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: .5rem 0; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
p, small { color: var(--soft); }
pre, code { font: .84rem/1.45 ui-monospace, monospace; }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: .5rem;
  background: var(--card); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .7rem; text-align: right; white-space: nowrap; }
th { font-size: .8rem; color: var(--soft); font-weight: 600; }
td { border-top: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: var(--card); }
/* Names of arms stay in view, and leave a phone room for the figures beside them. */
td:first-child { white-space: normal; min-width: 7rem; max-width: 45vw; }
tr.best td { font-weight: 600; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .8rem; }
.card, .rung, details { background: var(--card); border: 1px solid var(--line);
  border-radius: .5rem; padding: .7rem .9rem; }
.card b { display: block; font-size: 1.6rem; color: var(--accent); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr));
  gap: 1rem; }
figure { margin: 0; min-width: 0; } .picture { overflow-x: auto; }
img { width: 100%; min-width: 36rem; border-radius: .5rem; background: white; }
figcaption { color: var(--soft); font-size: .85rem; }
.ladder { display: flex; gap: .8rem; overflow-x: auto; align-items: flex-start; }
.rung { flex: 1 0 17rem; max-height: 30rem; overflow-y: auto; }
.rung h3 { margin: 0 0 .4rem; font-size: .95rem; }
.filters { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; margin: .6rem 0; }
button, select { font: inherit; color: inherit; background: var(--card);
  border: 1px solid var(--line); border-radius: .5rem; padding: .35rem .8rem; max-width: 100%; }
button[aria-pressed=true] { background: var(--accent); color: var(--paper); }
details { margin: .4rem 0; } summary { cursor: pointer; overflow-wrap: anywhere; }
details .scroll { margin-top: .6rem; border: 0; }
details td { white-space: normal; text-align: left; vertical-align: top; min-width: 6rem; }
details th { text-align: left; }
.wrapped td:last-child { white-space: normal; text-align: left; min-width: 18rem; }
.right { color: var(--good); } .wrong { color: var(--bad); }
[hidden] { display: none; }
"""

SCRIPT = """
for (const drill of document.querySelectorAll('.drill')) {
  const examples = [...drill.querySelectorAll('.example')];
  const buttons = [...drill.querySelectorAll('button[data-show]')];
  const arm = drill.querySelector('.arm');
  const slice = drill.querySelector('.slice');
  const count = drill.querySelector('.count');
  let show = 'all';
  // One digit per arm, 1 where it is right; a chosen arm leaves its own.
  function fits(verdicts) {
    const one = arm.value === '' ? verdicts : verdicts[arm.value];
    if (show === 'wrong') return one.includes('0');
    if (show === 'right') return !one.includes('0');
    if (show === 'disagree') return verdicts.includes('0') && verdicts.includes('1');
    return true;
  }
  function update() {
    let shown = 0;
    for (const example of examples) {
      const part = !slice.value || example.dataset.slice === slice.value;
      example.hidden = !(part && fits(example.dataset.right));
      shown += !example.hidden;
    }
    for (const button of buttons)
      button.setAttribute('aria-pressed', button.dataset.show === show);
    count.textContent = shown + ' shown';
  }
  for (const button of buttons) button.onclick = () => { show = button.dataset.show; update(); };
  arm.onchange = slice.onchange = update;
  update();
}
"""
