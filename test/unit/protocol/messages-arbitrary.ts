/** Generated messages, from the same schemas that both languages check with. */
import fc from "fast-check";
import type { FromClient, FromController } from "../../../src/protocol/messages.js";
import { type JsonSchema, protocolSchema } from "../../../src/protocol/schema.js";

const MAX = Number.MAX_SAFE_INTEGER;

/** Numbers around every border of MessagePack's integer formats. */
const BORDERS = [0, 1, 127, 128, 255, 256, 65535, 65536, 2 ** 31, 2 ** 32 - 1, 2 ** 32, 2 ** 53 - 1];

function integer(minimum: number, maximum: number): fc.Arbitrary<number> {
  const borders = [...BORDERS, ...BORDERS.slice(1).map((n) => -n)].filter((n) => n >= minimum && n <= maximum);
  return fc.oneof(fc.constantFrom(...borders, Math.max(minimum, 1)), fc.integer({ min: minimum, max: maximum }));
}

function number(schema: JsonSchema): fc.Arbitrary<number> {
  const { minimum, maximum, exclusiveMinimum } = schema;
  const min = minimum ?? (exclusiveMinimum === undefined ? undefined : Number.EPSILON);
  return fc
    .double({
      noNaN: true,
      noDefaultInfinity: true,
      ...(min === undefined ? {} : { min }),
      ...(maximum === undefined ? {} : { max: maximum }),
    })
    .map((value) => (value === 0 ? 0 : value)); // -0 has no integer form, and nobody means it
}

export function arbitraryOf(schema: JsonSchema): fc.Arbitrary<unknown> {
  if (schema.const !== undefined) return fc.constant(schema.const);
  if (schema.enum) return fc.constantFrom(...schema.enum);
  if (schema.anyOf) return fc.oneof(...schema.anyOf.map(arbitraryOf));
  if (Array.isArray(schema.type)) return fc.oneof(...schema.type.map((type) => arbitraryOf({ ...schema, type })));
  switch (schema.type) {
    case "null":
      return fc.constant(null);
    case "boolean":
      return fc.boolean();
    case "integer":
      return integer(schema.minimum ?? -MAX, schema.maximum ?? MAX);
    case "number":
      return number(schema);
    case "string":
      return schema.contentEncoding === "binary"
        ? fc.uint8Array({ maxLength: 300 })
        : fc.string({ unit: "grapheme", maxLength: 40 });
    case "array":
      return fc.array(arbitraryOf(schema.items as JsonSchema), { maxLength: 20 });
    case "object":
      if (schema.additionalProperties) {
        return fc.dictionary(fc.string({ minLength: 1, maxLength: 8 }), arbitraryOf(schema.additionalProperties), {
          noNullPrototype: true,
          maxKeys: 5,
        });
      }
      return fc.record(
        Object.fromEntries(Object.entries(schema.properties ?? {}).map(([key, one]) => [key, arbitraryOf(one)])),
        { noNullPrototype: true },
      );
    default:
      throw new Error(`no arbitrary for ${JSON.stringify(schema)}`);
  }
}

const schema = protocolSchema();

/** Every message, by type, in each direction. */
export const clientMessages = Object.entries(schema.fromClient).map(
  ([type, one]) => [type, arbitraryOf(one) as fc.Arbitrary<FromClient>] as const,
);
export const controllerMessages = Object.entries(schema.fromController).map(
  ([type, one]) => [type, arbitraryOf(one) as fc.Arbitrary<FromController>] as const,
);
