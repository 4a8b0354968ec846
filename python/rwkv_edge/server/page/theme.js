// SPDX-License-Identifier: Apache-2.0
// A classic script: it runs before the first paint, so a chosen theme does not flash.
"use strict";
{
  const theme = localStorage.getItem("rwkv-edge.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
}
