// Live updates. Pages are complete without this script. It reloads the changing parts of a page after each event and at intervals.
"use strict";

(() => {
  const AGAIN = 30_000; // interval of reloads without events, and delay before a reconnect, in milliseconds
  const PAUSE = 1_000; // minimum interval of reloads, in milliseconds
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
      // Keep the keyboard focus.
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
      // The browser reconnects by itself unless the server refused the connection.
      if (source.readyState === EventSource.CLOSED) retry = setTimeout(listen, AGAIN);
    });
  }

  function stop() {
    clearTimeout(retry);
    source?.close();
  }

  // A browser limits its connections to one server: a hidden page releases its own.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) return stop();
    soon();
    listen();
  });
  setInterval(() => { if (!document.hidden) soon(); }, AGAIN);
  if (!document.hidden) listen();
})();
