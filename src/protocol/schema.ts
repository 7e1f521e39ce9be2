/** The messages as JSON schemas: what the Python side is generated from. */
import { z } from "zod";
import { failure, fromClient, fromController, releaseStage, sampling, wakeTag } from "./messages.js";

/** The part of JSON schema that our messages use; binary is `{ type: "string", contentEncoding: "binary" }`. */
export interface JsonSchema {
  readonly type?: string | readonly string[];
  readonly contentEncoding?: string;
  readonly const?: string;
  readonly enum?: readonly string[];
  readonly anyOf?: readonly JsonSchema[];
  readonly items?: JsonSchema;
  readonly properties?: Readonly<Record<string, JsonSchema>>;
  readonly additionalProperties?: JsonSchema | false;
  readonly minimum?: number;
  readonly maximum?: number;
  readonly exclusiveMinimum?: number;
}

function jsonSchema(schema: z.ZodType): JsonSchema {
  return z.toJSONSchema(schema, {
    unrepresentable: "any",
    reused: "inline",
    override: ({ zodSchema, jsonSchema: json }) => {
      if (zodSchema._zod.def.type !== "custom") return;
      json.type = "string";
      json.contentEncoding = "binary";
    },
  }) as JsonSchema;
}

export interface ProtocolSchema {
  /** Objects and enums that messages contain, by the name they have in Python. */
  readonly parts: Readonly<Record<string, JsonSchema>>;
  /** Messages by `type`. */
  readonly fromClient: Readonly<Record<string, JsonSchema>>;
  readonly fromController: Readonly<Record<string, JsonSchema>>;
}

/** All schemas, in the order of messages.ts. */
export function protocolSchema(): ProtocolSchema {
  const messages = (union: typeof fromClient | typeof fromController) =>
    Object.fromEntries(union.options.map((option) => [option.shape.type.value, jsonSchema(option)] as const));
  return {
    parts: {
      WakeTag: jsonSchema(wakeTag),
      ReleaseStage: jsonSchema(releaseStage),
      Sampling: jsonSchema(sampling),
      Failure: jsonSchema(failure),
    },
    fromClient: messages(fromClient),
    fromController: messages(fromController),
  };
}
