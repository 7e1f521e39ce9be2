/** Several nodes in one run: how their controllers meet, and end together. */
export { sharedWords } from "./command-words.js";
export { factsOf, type Identity } from "./facts.js";
export { Hub } from "./hub-server.js";
export { readKey } from "./key.js";
export { Member, type NodeReport } from "./member.js";
export type { Facts } from "./messages.js";
export type { NodeRanks } from "./world.js";
