#!/usr/bin/env node
/** node-gyp for prebuildify: `rebuild` would first remove build/, with every other tree in it. */
import { createRequire } from "node:module";
import { run } from "./tools.mjs";

const nodeGyp = createRequire(import.meta.url).resolve("node-gyp/bin/node-gyp.js");
const options = process.argv.slice(2).filter((argument) => argument !== "rebuild");
for (const step of ["configure", "build"]) run(process.execPath, [nodeGyp, step, ...options]);
