/**
 * Who talks to the controller. Ranks are known by their local rank, which is also their GPU; the shell maps
 * the global rank of a `hello` to it.
 */
export type Client =
  | { readonly role: "rank"; readonly index: number }
  | { readonly role: "engine"; readonly index: number }
  | { readonly role: "worker"; readonly engine: number; readonly index: number };

/** A name for logs and errors; also the key of the client in maps. */
export function clientName(client: Client): string {
  if (client.role === "worker") return `worker ${client.index} of engine ${client.engine}`;
  return `${client.role} ${client.index}`;
}
