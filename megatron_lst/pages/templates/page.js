"use strict";
// A player's position moves over its words and patches; a click on one of them seeks, arrow keys go from word to word.
const players = [...document.querySelectorAll("[data-player]")];
for (const player of players) {
  const audio = player.querySelector("audio");
  const head = player.querySelector(".playhead");
  const box = player.querySelector(".timeline");
  const tracks = player.querySelector(".tracks");
  const parts = [...player.querySelectorAll("[data-begin]")];
  const spans = parts.map((part) => [part, Number(part.dataset.begin), Number(part.dataset.end)]);
  const seconds = Number(player.dataset.seconds);

  const show = () => {
    const now = audio.currentTime;
    for (const [part, begin, end] of spans) {
      const inside = begin <= now && now < end;
      part.classList.toggle("now", inside);
      if (!part.matches("button")) continue;
      if (inside) part.setAttribute("aria-current", "true");
      else part.removeAttribute("aria-current");
    }
    if (!head) return;
    head.hidden = false;
    const place = Math.min(now / seconds, 1) * tracks.clientWidth;
    head.style.left = place + "px";
    if (place < box.scrollLeft || place > box.scrollLeft + box.clientWidth - 40) box.scrollLeft = place - 40;
  };
  const follow = () => {
    show();
    if (!audio.paused && !audio.ended) requestAnimationFrame(follow);
  };
  for (const name of ["timeupdate", "seeking", "seeked", "ended"]) audio.addEventListener(name, show);
  audio.addEventListener("play", () => {
    for (const other of players) if (other !== player) other.querySelector("audio").pause();
    follow();
  });
  for (const [part, begin] of spans) {
    part.addEventListener("click", () => {
      audio.currentTime = begin;
      show();
      audio.play().catch(() => {});
    });
  }
  const words = parts.filter((part) => part.matches("button"));
  words.forEach((word, index) => {
    word.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      const next = words[index + step];
      if (!next) return;
      event.preventDefault();
      word.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
  });
}

// On paper everything is open.
const folded = () => [...document.querySelectorAll("details:not([open])")];
let opened = [];
addEventListener("beforeprint", () => { opened = folded(); for (const one of opened) one.open = true; });
addEventListener("afterprint", () => { for (const one of opened) one.open = false; });
