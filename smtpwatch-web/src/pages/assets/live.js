// Pages are whole without this. Here it looks again at the parts that can change, when something happens and now and then.
"use strict";

(() => {
  const AGAIN = 30_000; // milliseconds between two looks while nothing happens, and before another try to listen
  const PAUSE = 1_000; // between two looks, however much happens
  const mine = document.body.dataset.incident;
  const said = document.getElementById("live");
  const parts = () => document.querySelectorAll("[data-live]");
  if (!window.EventSource || parts().length === 0) return;

  let source, retry, planned, told = 0;

  async function look() {
    planned = undefined;
    const answer = await fetch(location.href, { headers: { accept: "text/html" }, cache: "no-store" }).catch(() => undefined);
    if (!answer || !answer.ok) return;
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const part of parts()) {
      const now = fresh.getElementById(part.id);
      if (!now || now.innerHTML === part.innerHTML) continue;
      const held = part.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
      part.replaceChildren(...now.childNodes);
      // Who goes through the page by keyboard stays where they were.
      if (held) part.querySelector(`[href="${CSS.escape(held)}"]`)?.focus({ preventScroll: true });
    }
  }

  function soon() {
    planned ??= setTimeout(look, PAUSE);
  }

  function listen() {
    clearTimeout(retry);
    source = new EventSource("/api/v1/events");
    source.addEventListener("open", () => { said.textContent = "live"; });
    source.addEventListener("lagged", soon);
    source.addEventListener("finding", (event) => {
      const happened = JSON.parse(event.data);
      if (mine && happened.incident !== mine) return;
      told += 1;
      said.textContent = `live: ${told} new, the last ${happened.kind} (${happened.severity})`;
      soon();
    });
    source.addEventListener("error", () => {
      said.textContent = "not live: the connection was lost";
      // The browser tries again by itself unless it was refused.
      if (source.readyState === EventSource.CLOSED) retry = setTimeout(listen, AGAIN);
    });
  }

  function stop() {
    clearTimeout(retry);
    source?.close();
  }

  // A browser has few connections to one server: a page that nobody looks at gives its own back.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) return stop();
    soon();
    listen();
  });
  setInterval(() => { if (!document.hidden) soon(); }, AGAIN);
  if (!document.hidden) listen();
})();
