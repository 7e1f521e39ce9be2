/** `npm run protocol`: writes the Python messages from src/protocol/messages. `--check` only compares. */
import { readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { PROTOCOL_VERSION } from "../src/protocol/messages.js";
import { MESSAGE_SOURCES, pythonMessages } from "../src/protocol/python.js";

const path = (relative: string) => fileURLToPath(new URL(relative, import.meta.url));
const target = path("../python/src/baton/protocol/messages.py");
const sources = MESSAGE_SOURCES.map((name) => readFileSync(path(`../src/protocol/${name}`), "utf8"));
const text = pythonMessages(sources.join(""), PROTOCOL_VERSION);

if (!process.argv.includes("--check")) {
  writeFileSync(target, text);
} else if (readFileSync(target, "utf8") !== text) {
  console.error("python/src/baton/protocol/messages.py is stale: run `npm run protocol`");
  process.exitCode = 1;
}
