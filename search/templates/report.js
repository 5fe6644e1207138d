"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  // Colors: the names of CSS variables in the charts become what the theme makes of them.
  const probe = document.body.appendChild(document.createElement("span"));
  probe.hidden = true;
  const colored = (value, known) => {
    if (typeof value === "string" && value.startsWith("var(--")) {
      if (!(value in known)) {
        probe.style.color = value;
        known[value] = getComputedStyle(probe).color;
      }
      return known[value];
    }
    if (Array.isArray(value)) return value.map((each) => colored(each, known));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, colored(each, known)]));
    }
    return value;
  };

  // Charts are drawn when they are about to be seen, and again when the theme changes.
  const drawn = new Set();
  const draw = (plot) => {
    const chart = data.charts[plot.id];
    const known = {};
    const traces = chart.data.map((trace) => {
      const texts = trace.customdata && trace.customdata.map((number) => data.hover[trace.meta || chart.study][number] || "");
      return { ...colored(trace, known), ...(texts && { hovertext: texts }) };
    });
    const layout = { ...colored(chart.layout, known), height: chart.height };
    layout.template = { layout: colored(data.template, known) };
    layout.template.layout.font.family = getComputedStyle(document.body).fontFamily;
    Plotly.react(plot, traces, layout, { displayModeBar: false, responsive: true });
    drawn.add(plot);
  };
  const plots = all(".plot");
  const watcher = new IntersectionObserver(
    (entries) => entries.forEach((entry) => {
      if (entry.isIntersecting) {
        watcher.unobserve(entry.target);
        draw(entry.target);
      }
    }),
    { rootMargin: "800px 0px" },
  );
  plots.forEach((plot) => watcher.observe(plot));
  addEventListener("beforeprint", () => plots.filter((plot) => !drawn.has(plot)).forEach(draw));

  const system = matchMedia("(prefers-color-scheme: dark)");
  const toggle = document.getElementById("theme");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const themed = () => {
    toggle.textContent = dark() ? "Light" : "Dark";
    drawn.forEach(draw);
  };
  toggle.hidden = false;
  toggle.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    themed();
  });
  system.addEventListener("change", themed);
  themed();

  // Tables: a click on a heading sorts; numbers by `data-value`, what has none last.
  const sorted = (rows, read, down) => {
    const order = (a, b) => {
      const [x, y] = [read(a), read(b)];
      if (x === y) return 0;
      if (x === null || y === null) return x === null ? 1 : -1;
      const less = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), undefined, { numeric: true });
      return down ? -less : less;
    };
    return rows.sort(order);
  };
  const sortable = (table, sort) => all("thead th", table).forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      all("thead th", table).forEach((each) => each.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      sort(column, down);
    });
  });
  all("table.sortable").forEach((table) => sortable(table, (column, down) => {
    const read = (row) => {
      const cell = row.children[column];
      if (!("value" in cell.dataset)) return cell.textContent.trim();
      return cell.dataset.value === "" ? null : Number(cell.dataset.value);
    };
    table.tBodies[0].append(...sorted([...table.rows].filter((row) => row.parentNode === table.tBodies[0]), read, down));
  }));

  // All trials: rows are made from the data as they are asked for, a hundred at a time.
  const PAGE = 100;
  all("[data-trials]").forEach((part) => {
    const { columns, rows } = data.trials[part.dataset.trials];
    const table = part.querySelector("table");
    const [input, select] = [part.querySelector("input"), part.querySelector("select")];
    const [said, more] = [part.querySelector("output"), part.querySelector(".more")];
    const texts = (row) => row.map((cell) => (Array.isArray(cell) ? cell[0] : cell));
    const entries = rows.map((row) => ({ row, words: texts(row).join("\u0001").toLowerCase() }));
    let [chosen, shown] = [entries, 0];
    const element = (name, text, type) => {
      const made = document.createElement(name);
      made.textContent = text;
      if (type) made.className = type;
      return made;
    };
    const head = table.createTHead().insertRow();
    columns.forEach(([label, unit, type]) => {
      const heading = element("th", label, type);
      heading.scope = "col";
      if (unit) heading.append(element("small", unit));
      head.append(heading);
    });
    const body = table.createTBody();
    const grow = () => {
      chosen.slice(shown, shown + PAGE).forEach(({ row }) => {
        const line = body.insertRow();
        texts(row).forEach((text, column) => {
          const cell = element(column ? "td" : "th", text, columns[column][2]);
          if (!column) cell.scope = "row";
          line.append(cell);
        });
      });
      shown = Math.min(shown + PAGE, chosen.length);
      more.hidden = shown >= chosen.length;
      said.textContent = `${chosen.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} trials`;
    };
    const filter = () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      chosen = entries.filter(({ row, words: text }) => (!select.value || row[1] === select.value)
        && words.every((word) => text.includes(word)));
      shown = 0;
      body.replaceChildren();
      grow();
    };
    sortable(table, (column, down) => {
      sorted(entries, ({ row }) => (Array.isArray(row[column]) ? row[column][1] : row[column]), down);
      filter();
    });
    input.addEventListener("input", filter);
    select.addEventListener("change", filter);
    more.addEventListener("click", grow);
    filter();
  });

  all(".code").forEach((part) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Copy";
    button.setAttribute("aria-label", `Copy: ${part.dataset.what}`);
    button.addEventListener("click", async () => {
      const code = part.querySelector("pre");
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(code);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
    part.prepend(button);
  });

  const dialog = document.querySelector("dialog");
  all(".sheet button").forEach((button) => button.addEventListener("click", () => {
    const picture = button.querySelector("img").cloneNode();
    dialog.replaceChildren(picture);
    dialog.showModal();
  }));
  dialog.addEventListener("click", () => dialog.close());
})();
