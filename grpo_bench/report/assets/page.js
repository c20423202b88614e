// What holds for the whole page: unpacking, sorting and filtering of tables, and where the reader is.
const $ = (selector, within = document) => within.querySelector(selector);
const $$ = (selector, within = document) => [...within.querySelectorAll(selector)];

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children); // strings become text: what a model wrote is never read as markup
  return node;
}

async function unpack(id) {
  const bytes = Uint8Array.from(atob($("#packed-" + id).textContent), c => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

function sortable(table) {
  const heads = $$("thead th", table);
  heads.forEach((head, column) => $("button", head).addEventListener("click", () => {
    const descending = head.getAttribute("aria-sort") === "ascending";
    heads.forEach(other => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const key = row => {
      const cell = row.cells[column], value = cell.dataset.v;
      return value === undefined ? cell.textContent : Number(value);
    };
    const order = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1; // numbers before words, either way round
      const sign = typeof x === "number" ? x - y : x.localeCompare(y, "en", { numeric: true });
      return descending ? -sign : sign;
    };
    const body = table.tBodies[0];
    body.append(...[...body.rows].sort(order));
  }));
}

function filterable(input) {
  const table = $("table", input.closest("figure"));
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of table.tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every(word => text.includes(word));
    }
  });
}

$$("table[data-sortable]").forEach(sortable);
$$("input[data-filter]").forEach(filterable);

const links = new Map($$("nav a").map(link => [link.getAttribute("href").slice(1), link]));
const seen = new IntersectionObserver(entries => {
  for (const { target, isIntersecting } of entries)
    if (isIntersecting) links.forEach((link, id) => link.classList.toggle("here", id === target.id));
}, { rootMargin: "-15% 0px -75% 0px" });
$$("main > section").forEach(section => seen.observe(section));
