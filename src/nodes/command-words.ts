/**
 * Whether the nodes start their ranks by the same command. Only a warning comes of it: paths, and words that say which
 * node this is, may differ for good reasons.
 */

/** As torchrun, accelerate and DeepSpeed spell them, with `-` or `_`. */
const OF_A_NODE = [
  ...["node-rank", "machine-rank", "master-addr", "main-process-ip", "master-port", "main-process-port"],
  ...["rdzv-endpoint", "rdzv-conf", "rdzv-id", "local-addr", "log-dir"],
];
const FLAG = `--?(?:${OF_A_NODE.map((name) => name.replaceAll("-", "[-_]")).join("|")})`;
const WHOLE_FLAG = new RegExp(`^${FLAG}$`);
/** With its value behind `=`; or inside of a word that is a script for a shell. */
const INSIDE = new RegExp(`(?<![^\\s;"'])${FLAG}[=\\s]\\s*[^\\s;"']+`, "g");
const MOST = { words: 1_000, characters: 1_000 };

/** The words of a command without those that say which node this is. */
export function sharedWords(command: readonly string[]): string[] {
  const words: string[] = [];
  for (let at = 0; at < command.length; at++) {
    const word = command[at] as string;
    if (WHOLE_FLAG.test(word)) at++;
    else if (word.replaceAll(INSIDE, "").trim() !== "" || word === "") words.push(word.replaceAll(INSIDE, "").trim());
  }
  return words.slice(0, MOST.words).map((word) => word.slice(0, MOST.characters));
}

/** The first word that is not the same, for people; null: there is none. */
export function commandsDiffer(
  nodes: readonly { readonly host: string; readonly command: readonly string[] }[],
): string | null {
  const [first, ...others] = nodes;
  if (first === undefined) return null;
  for (const [position, other] of others.entries()) {
    const most = Math.max(first.command.length, other.command.length);
    const at = Array.from({ length: most }, (_, index) => index).find(
      (index) => first.command[index] !== other.command[index],
    );
    if (at === undefined) continue;
    const before = at === 0 ? "" : ` after \`${first.command[at - 1]}\``;
    const said = ({ command }: typeof first): string => (at < command.length ? `\`${command[at]}\`` : "nothing");
    return (
      `the nodes' commands differ:${before} ${said(first)} on node 0 (${first.host}), ` +
      `${said(other)} on node ${position + 1} (${other.host}); the run goes on`
    );
  }
  return null;
}
