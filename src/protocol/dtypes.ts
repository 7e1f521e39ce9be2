/** Bytes of one element of the types that weights may have, by their names on the wire. */
export const ELEMENT_BYTES = { float32: 4, bfloat16: 2, float16: 2 } as const;

export type Dtype = keyof typeof ELEMENT_BYTES;

export const isDtype = (name: string): name is Dtype => Object.hasOwn(ELEMENT_BYTES, name);
