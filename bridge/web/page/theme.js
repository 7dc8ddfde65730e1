// Before anything is painted: the theme that was chosen, if one was; else the system's counts, and its changes.

const system = matchMedia("(prefers-color-scheme: dark)");

function showTheme() {
  let theme = null;
  try {
    theme = localStorage.getItem("stt-theme");
  } catch {
    // Storage may be forbidden; then the system's theme it is.
  }
  if (theme !== "light" && theme !== "dark") theme = system.matches ? "dark" : "light";
  document.documentElement.dataset.theme = theme;
}

showTheme();
system.addEventListener("change", showTheme);
