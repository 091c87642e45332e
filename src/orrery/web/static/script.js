// Niceties only: every page works without this file. Colours at once, votes without a reload, keys, copying.
(function () {
  "use strict";
  var root = document.documentElement;
  root.classList.add("js");

  // ------------------------------------------------------------ colours: kept by a cookie, in an exported page by the browser
  var kept = null;
  try { kept = localStorage.getItem("orrery-theme"); } catch (error) { kept = null; }
  if (root.dataset.theme === "auto" && (kept === "dark" || kept === "light")) root.dataset.theme = kept;

  function paint(theme) {
    root.dataset.theme = theme;
    try { localStorage.setItem("orrery-theme", theme); } catch (error) { return; }
  }

  function send(form, extra) {
    var body = new URLSearchParams(new FormData(form));
    Object.keys(extra || {}).forEach(function (key) { body.set(key, extra[key]); });
    return fetch(form.action, {
      method: "POST", body: body, credentials: "same-origin", headers: { Accept: "application/json" }, redirect: "error"
    }).then(function (answer) {
      return answer.json().then(function (found) {
        if (!answer.ok) throw new Error(found.error || "That did not work.");
        return found;
      });
    });
  }

  var voice = null;
  function say(text) {
    if (!voice) {
      voice = document.createElement("p");
      voice.className = "unseen";
      voice.setAttribute("role", "status");
      document.body.appendChild(voice);
    }
    voice.textContent = text;
  }

  // ------------------------------------------------------------ votes
  function vote(event) {
    var form = event.target;
    event.preventDefault();
    var button = form.querySelector("button");
    if (button.disabled) return;
    button.disabled = true;
    send(form).then(function (found) {
      button.setAttribute("aria-pressed", found.voted ? "true" : "false");
      form.elements["do"].value = found.voted ? "unvote" : "vote";
      form.querySelector("[data-votes]").textContent = found.votes;
      say(found.voted ? "Your vote is counted: " + found.votes : "Your vote is taken back: " + found.votes);
      button.disabled = false;
      button.focus();
    }, function () {
      button.disabled = false;
      form.submit(); // the page that follows says in a sentence what is wrong
    });
  }

  // ------------------------------------------------------------ keys
  var cards = [], at = -1;
  function go(step) {
    if (!cards.length) return;
    at = Math.min(cards.length - 1, Math.max(0, at + step));
    cards.forEach(function (card, index) { card.classList.toggle("now", index === at); });
    var link = cards[at].querySelector("h2 a, h3 a");
    link.focus({ preventScroll: true });
    cards[at].scrollIntoView({ block: "nearest" });
  }

  function keys(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    var typing = /^(input|textarea|select)$/i.test(event.target.tagName);
    if (event.key === "Escape" && typing) { event.target.blur(); return; }
    if (typing) return;
    if (event.key === "/") {
      var field = Array.prototype.filter.call(document.querySelectorAll("[data-find]"), function (one) { return one.offsetParent; })[0];
      if (field) { event.preventDefault(); field.focus(); field.select(); }
    } else if (event.key === "j") { go(1); } else if (event.key === "k") { go(-1); }
  }

  // ------------------------------------------------------------ search in an exported site: words by prefix, over a small index
  function fold(text) { return text.normalize("NFKD").replace(/[\u0300-\u036f]/g, "").toLowerCase(); }

  function local(form) {
    var index = (window.ORRERY_INDEX || []).map(function (one) { return { slug: one[0], title: fold(one[1]), text: fold(one[2]) }; });
    var list = document.querySelector("[data-listing]"), said = document.querySelector("[data-found]");
    var items = {};
    Array.prototype.forEach.call(list.children, function (item) { items[item.dataset.slug] = item; });
    function find() {
      var words = fold(form.elements.q.value).split(/[^\p{L}\p{N}]+/u).filter(Boolean);
      var hits = index.map(function (one, place) {
        var points = 0;
        var all = words.every(function (word) {
          var inTitle = (" " + one.title).indexOf(" " + word) >= 0 || one.title.indexOf("-" + word) >= 0;
          var inText = one.text.indexOf(word) >= 0;
          points += inTitle ? 3 : inText ? 1 : 0;
          return inTitle || inText || one.title.indexOf(word) >= 0;
        });
        return { slug: one.slug, points: points, place: place, all: all };
      }).filter(function (one) { return one.all; });
      hits.sort(function (a, b) { return b.points - a.points || a.place - b.place; });
      Object.keys(items).forEach(function (slug) { items[slug].hidden = true; });
      hits.forEach(function (one) { var item = items[one.slug]; item.hidden = false; list.appendChild(item); });
      said.textContent = hits.length + (hits.length === 1 ? " paper" : " papers") + (words.length ? " with these words." : ", newest first.");
    }
    form.addEventListener("submit", function (event) { event.preventDefault(); find(); });
    form.elements.q.addEventListener("input", find);
    var asked = new URLSearchParams(location.search).get("q");
    if (asked) { form.elements.q.value = asked; find(); }
  }

  document.addEventListener("DOMContentLoaded", function () {
    cards = Array.prototype.slice.call(document.querySelectorAll("[data-card]"));
    document.addEventListener("keydown", keys);
    document.querySelectorAll("[data-vote]").forEach(function (form) { form.addEventListener("submit", vote); });
    document.querySelectorAll("[data-copy]").forEach(function (button) {
      if (!navigator.clipboard) { button.hidden = true; return; }
      button.addEventListener("click", function () {
        navigator.clipboard.writeText(button.dataset.copy).then(function () {
          button.textContent = "Copied";
          say("Copied");
          setTimeout(function () { button.textContent = "Copy"; }, 1600);
        });
      });
    });
    document.querySelectorAll(".iconic[name=theme]").forEach(function (button) {
      button.addEventListener("click", function (event) {
        event.preventDefault();
        paint(button.value);
        if (button.form) send(button.form, { theme: button.value }).catch(function () { return null; });
        var other = document.querySelector(".to-" + (button.value === "dark" ? "light" : "dark"));
        if (other) other.focus();
      });
    });
    var search = document.querySelector("[data-static-search]");
    if (search) local(search);
    window.addEventListener("beforeprint", function () {
      document.querySelectorAll("details.abstract").forEach(function (one) { one.open = true; });
    });
  });
})();
