// SPDX-License-Identifier: Apache-2.0

/** Messages written field by field, for what no generated code sends: fields that this contract does not have. */

/** One field: text and bytes with their length before them, a number as it is. Several values are one message. */
export function field(number: number, ...values: (string | Uint8Array | number)[]): Buffer {
  if (typeof values[0] === "number") return Buffer.concat([varint(number * 8), varint(values[0])]);
  const content = Buffer.concat(values.map((value) => Buffer.from(value as string)));
  return Buffer.concat([varint(number * 8 + 2), varint(content.length), content]);
}

function varint(value: number): Buffer {
  const bytes = [];
  for (; value > 0x7f; value = Math.floor(value / 128)) bytes.push((value % 128) | 0x80);
  return Buffer.from([...bytes, value]);
}
