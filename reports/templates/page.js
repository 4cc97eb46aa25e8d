(function () {
  var root = document.documentElement, key = "zometer-theme";
  function keep(value) { try { localStorage.setItem(key, value); } catch (e) { /* private mode */ } }
  function kept() { try { return localStorage.getItem(key); } catch (e) { return null; } }
  var wanted = kept() || location.hash.slice(1);
  if (wanted === "light" || wanted === "dark") root.dataset.theme = wanted;
  addEventListener("DOMContentLoaded", function () {
    document.getElementById("theme").addEventListener("click", function () {
      var dark = root.dataset.theme
        ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
      root.dataset.theme = dark ? "light" : "dark";
      keep(root.dataset.theme);
    });
  });
})();
