/** Writes the messages as Python: msgspec Structs, one tagged union for each direction. */
import { type JsonSchema, protocolSchema } from "./schema.js";

const HEADER = `"""The messages between the controller and its clients.

Generated from src/protocol/messages by \`npm run protocol\`; not to be edited by hand.

Field names are snake_case here and camelCase on the wire. Integer arrays travel as little-endian binary: see
\`baton.protocol.arrays\`. Decoding checks types and ranges; encoding does not, the controller checks what it gets.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
`;

/** The files with the messages, beside this one: their comments become documentation of the Python classes. */
export const MESSAGE_SOURCES = ["messages/fields.ts", "messages/client.ts", "messages/controller.ts"] as const;

/** Type, range and field documentation of a message, taken from the comments of its source. */
export interface SourceComments {
  /** By exported constant. */
  readonly messages: ReadonlyMap<string, string>;
  /** By `constant.field`. */
  readonly fields: ReadonlyMap<string, string>;
}

/**
 * Reads the comments of the messages. The files have one shape: a constant starts at the margin, its fields are
 * indented by two, and a comment stands right before what it explains.
 */
export function readComments(source: string): SourceComments {
  const messages = new Map<string, string>();
  const fields = new Map<string, string>();
  let comment: string[] | null = null;
  let open = false;
  let constant = "";
  for (const line of source.split("\n")) {
    const text = line.trim();
    if (open || text.startsWith("/**")) {
      comment = open ? comment : [];
      open = !text.endsWith("*/");
      const words = text
        .replace(/^\/\*\*|^\*\/|^\*|\*\/$/g, "")
        .replace(/\*\/$/, "")
        .trim();
      if (words !== "") comment?.push(words);
      continue;
    }
    const declared = /^(?:export )?const (\w+)/.exec(line);
    const field = /^ {2}(\w+)[:,]/.exec(line);
    if (declared?.[1] !== undefined) {
      constant = declared[1];
      if (comment) messages.set(constant, comment.join(" "));
    } else if (field && comment) {
      fields.set(`${constant}.${field[1]}`, comment.join(" "));
    }
    comment = null;
  }
  return { messages, fields };
}

export function snakeCase(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}

export function pascalCase(name: string): string {
  return name.charAt(0).toUpperCase() + name.slice(1);
}

class PythonWriter {
  private readonly lines: string[] = [];
  /** Python type of each schema that has a name, by its JSON text. */
  private readonly named = new Map<string, string>();
  private readonly aliases = new Map<string, string>();

  constructor(private readonly comments: SourceComments) {}

  enumeration(name: string, schema: JsonSchema): void {
    this.named.set(shapeOf(schema), name);
    this.lines.push("", `${name} = Literal[${schema.enum?.map((value) => JSON.stringify(value)).join(", ")}]`);
  }

  /** A Struct; `tag` is the value of its `type`, null for an object that is only part of messages. */
  struct(constant: string, name: string, schema: JsonSchema, tag: string | null): void {
    const body: string[] = [];
    for (const [field, fieldSchema] of Object.entries(schema.properties ?? {})) {
      if (field === "type" && tag !== null) continue;
      const comment = this.comments.fields.get(`${constant}.${field}`);
      if (comment !== undefined) body.push(...wrap(comment, "    #: "));
      body.push(`    ${snakeCase(field)}: ${this.type(fieldSchema, `${name}${pascalCase(field)}`)}`);
    }
    const tagged = tag === null ? "" : `, tag=${JSON.stringify(tag)}, tag_field="type"`;
    const comment = this.comments.messages.get(constant);
    this.lines.push("", "", `class ${name}(msgspec.Struct, kw_only=True, rename="camel"${tagged}):`);
    this.lines.push(...docstring(comment ?? `Message \`${tag ?? name}\`.`));
    if (body.length > 0) this.lines.push("", ...body);
    this.named.set(shapeOf(schema), name);
  }

  union(name: string, members: readonly string[]): void {
    this.lines.push("", "", `${name} = (`);
    members.forEach((member, i) => {
      this.lines.push(`    ${i === 0 ? "" : "| "}${member}`);
    });
    this.lines.push(")");
  }

  text(): string {
    const aliases = [...this.aliases].map(([name, type]) => `${name} = ${type}`);
    return `${[HEADER, ...aliases, ...this.lines].join("\n")}\n`;
  }

  private type(schema: JsonSchema, nameIfNew: string): string {
    const known = this.named.get(shapeOf(schema));
    if (known !== undefined) return known;
    if (schema.anyOf) return schema.anyOf.map((member) => this.type(member, nameIfNew)).join(" | ");
    if (Array.isArray(schema.type)) {
      return schema.type.map((type) => this.type({ ...schema, type }, nameIfNew)).join(" | ");
    }
    if (schema.enum) return `Literal[${schema.enum.map((value) => JSON.stringify(value)).join(", ")}]`;
    switch (schema.type) {
      case "null":
        return "None";
      case "boolean":
        return "bool";
      case "string":
        return schema.contentEncoding === "binary" ? "bytes" : "str";
      case "array":
        return `list[${this.type(required(schema.items), `${nameIfNew.replace(/s$/, "")}`)}]`;
      case "integer":
      case "number":
        return this.number(schema);
      case "object": {
        if (schema.additionalProperties) {
          return `dict[str, ${this.type(schema.additionalProperties, nameIfNew)}]`;
        }
        this.struct("", nameIfNew, schema, null);
        return nameIfNew;
      }
    }
    throw new Error(`no Python type for ${JSON.stringify(schema)}`);
  }

  /** Ranges get a name, so that a field reads `Count`, not its bounds. */
  private number(schema: JsonSchema): string {
    const base = schema.type === "integer" ? "int" : "float";
    const bounds = [
      schema.minimum === undefined ? [] : [`ge=${schema.minimum}`],
      schema.exclusiveMinimum === undefined ? [] : [`gt=${schema.exclusiveMinimum}`],
      schema.maximum === undefined ? [] : [`le=${schema.maximum}`],
    ].flat();
    if (bounds.length === 0) return base;
    const type = `Annotated[${base}, msgspec.Meta(${bounds.join(", ")})]`;
    const name = NUMBER_NAMES[`${base} ${bounds.join(" ")}`];
    if (name === undefined) return type;
    this.aliases.set(name, type);
    return name;
  }
}

const NUMBER_NAMES: Readonly<Record<string, string>> = {
  [`int ge=0 le=${Number.MAX_SAFE_INTEGER}`]: "Count",
  [`int ge=1 le=${Number.MAX_SAFE_INTEGER}`]: "Positive",
  [`int ge=${Number.MIN_SAFE_INTEGER} le=${Number.MAX_SAFE_INTEGER}`]: "Integer",
  "float ge=0": "NonNegative",
};

function shapeOf(schema: JsonSchema): string {
  const { $schema: _, ...rest } = schema as JsonSchema & { $schema?: string };
  return JSON.stringify(rest);
}

function required<T>(value: T | undefined): T {
  if (value === undefined) throw new Error("an array schema has no items");
  return value;
}

function wrap(text: string, prefix: string, width = 110): string[] {
  const lines: string[] = [];
  let line = prefix;
  for (const word of text.split(/\s+/)) {
    if (line.length + word.length > width && line !== prefix) {
      lines.push(line.trimEnd());
      line = prefix;
    }
    line += `${word} `;
  }
  lines.push(line.trimEnd());
  return lines;
}

function docstring(text: string): string[] {
  const escaped = text.replaceAll("\\", "\\\\");
  const one = `    """${escaped}"""`;
  if (one.length <= 120) return [one]; // as Ruff would write it
  const lines = wrap(escaped, "    ");
  lines[0] = `    """${lines[0]?.trimStart()}`;
  return [...lines, '    """'];
}

/** The text of python/src/baton/protocol/messages.py. `source`: the text of MESSAGE_SOURCES. */
export function pythonMessages(source: string, version: number): string {
  const schema = protocolSchema();
  const writer = new PythonWriter(readComments(source));
  for (const [name, part] of Object.entries(schema.parts)) {
    if (part.enum) writer.enumeration(name, part);
  }
  for (const [name, part] of Object.entries(schema.parts)) {
    if (!part.enum) writer.struct(name.charAt(0).toLowerCase() + name.slice(1), name, part, null);
  }
  const unions: Array<[string, Readonly<Record<string, JsonSchema>>]> = [
    ["FromClient", schema.fromClient],
    ["FromController", schema.fromController],
  ];
  for (const [, messages] of unions) {
    for (const [type, message] of Object.entries(messages)) {
      writer.struct(type, pascalCase(type), message, type);
    }
  }
  for (const [name, messages] of unions) writer.union(name, Object.keys(messages).map(pascalCase));
  return writer.text().replace("\n\n\nclass", `\n\nPROTOCOL_VERSION = ${version}\n\n\nclass`);
}
