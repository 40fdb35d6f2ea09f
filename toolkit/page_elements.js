"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const number = (value) => (value === null || value === undefined ? "–" : String(Number(value.toPrecision(3))));

// Texts become text nodes: a name or a token with tags in it stays what it is.
function grown(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
const make = (tag, attributes, ...children) => grown(document.createElement(tag), attributes, children);
const mark = (tag, attributes, ...children) =>
  grown(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
