// The browser of answers, and what starts the page.
const PAGE = 60; // answers shown at once
const KINDS = { test: "final test", dev: "dev, while training", train: "training samples" };

function browser(A) {
  const form = $("#answers form"), list = $("#answers .list"), more = $("#answers .more");
  const every = A.text.map((_, i) => i);
  const field = name => form.elements[name];
  let found = [], shown = 0;

  const options = (name, entries, any) => {
    const before = field(name).value;
    field(name).replaceChildren(...(any ? [make("option", { value: "" }, any)] : []), ...entries.map(([value, words]) => make("option", { value }, words)));
    if (entries.some(([value]) => String(value) === before)) field(name).value = before;
  };
  const distinct = (name, of) => [...new Set(of.map(i => A[name][i]))].filter(v => v !== null).sort((a, b) => a - b);

  function offer() {
    const of = every.filter(i => A.kind[i] === Number(field("kind").value));
    options("problem", distinct("problem", of).map(p => [p, A.problems[p].id]), "any");
    options("row", distinct("row", of).map(r => [r, A.rows[r]]), "any");
    options("seed", distinct("seed", of).map(s => [s, s]), "any");
    options("step", distinct("step", of).map(s => [s, s]), "any");
  }

  function search() {
    const text = field("text").value.toLowerCase(), right = field("right").value;
    const is = (name, i) => field(name).value === "" || A[name][i] === Number(field(name).value);
    found = every.filter(i => A.kind[i] === Number(field("kind").value) && ["problem", "row", "seed", "step"].every(name => is(name, i))
      && (right === "" || A.right[i] === (right === "1")) && (!text || A.texts[A.text[i]].toLowerCase().includes(text)));
    const by = field("sort").value, keys = by ? [by, "row", "seed", "step"] : ["row", "seed", "step"];
    found.sort((a, b) => { for (const k of keys) if (A[k][a] !== A[k][b]) return (A[k][a] ?? -1) - (A[k][b] ?? -1); return a - b; });
    const good = found.filter(i => A.right[i]).length;
    $("#answers .count").textContent = found.length + " answers, " + good + " right.";
    problem();
    list.replaceChildren();
    shown = 0;
    next();
  }

  function problem() {
    const box = $("#answers .problem"), id = field("problem").value;
    box.replaceChildren();
    if (id === "") return;
    const asked = A.problems[Number(id)];
    box.append(asked.question ? make("blockquote", {}, asked.question) : make("p", { class: "small" }, asked.id));
    if (asked.gold) box.append(make("p", {}, "Gold answer: ", make("b", {}, asked.gold)));
  }

  function card(i) {
    const parts = [make("b", {}, A.rows[A.row[i]])];
    const say = words => parts.push(make("span", {}, words));
    if (A.seed[i] !== null) say("seed " + A.seed[i]);
    if (A.step[i] !== null) say("step " + A.step[i]);
    parts.push(make("span", { class: "verdict" }, A.right[i] ? "✓ right" : "✗ wrong"));
    if (A.length[i] !== null) say(A.length[i] + " tokens" + (A.finished[i] ? "" : ", cut off"));
    if (A.reward[i] !== null) say("reward " + A.reward[i]);
    if (A.mode[i] === "sampled") say("sampled");
    if (field("problem").value === "") {
      const button = make("button", { type: "button", class: "about" }, A.problems[A.problem[i]].id);
      button.addEventListener("click", () => { field("problem").value = A.problem[i]; search(); });
      parts.push(button);
    }
    return make("article", { class: "answer" + (A.right[i] ? " right" : "") }, make("header", {}, ...parts), make("pre", {}, A.texts[A.text[i]].trim() || "(nothing)"));
  }

  function next() {
    list.append(...found.slice(shown, shown + PAGE).map(card));
    shown = Math.min(shown + PAGE, found.length);
    more.hidden = shown === found.length;
    more.textContent = "Show more (" + (found.length - shown) + " left)";
  }

  options("kind", distinct("kind", every).map(k => [k, KINDS[A.kinds[k]]]));
  offer();
  const first = distinct("problem", every.filter(i => A.kind[i] === Number(field("kind").value)))[0];
  field("problem").value = first;
  form.addEventListener("submit", event => event.preventDefault());
  form.addEventListener("input", event => { if (event.target.name === "kind") { offer(); field("problem").selectedIndex = 1; } search(); });
  $$("[data-step]", form).forEach(button => button.addEventListener("click", () => {
    const select = field("problem"), to = select.selectedIndex + Number(button.dataset.step);
    select.selectedIndex = Math.min(Math.max(to, 1), select.options.length - 1);
    search();
  }));
  more.addEventListener("click", next);
  search();
}

async function start() {
  const [library, charts] = await Promise.all([unpack("library"), unpack("charts")]);
  document.head.append(make("script", {}, library));
  D = JSON.parse(charts);
  D.shown.forEach(choose);
  chips();
  redraw();
  $$(".choose select").forEach(select => select.addEventListener("change", redraw));
  dark.addEventListener("change", redraw);
  addEventListener("beforeprint", () => { printing = true; $$("details").forEach(d => { d.open = true; }); redraw(); });
  addEventListener("afterprint", () => { printing = false; redraw(); });
  if ($("#answers")) browser(JSON.parse(await unpack("answers")));
  document.documentElement.classList.add("ready");
}
start();
