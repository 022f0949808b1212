// SPDX-License-Identifier: Apache-2.0

/**
 * Refuses what is no message, as a real gateway does. protobufjs reads on over wrong wire types, cuts off a string that ends
 * too early, and replaces bytes that are not UTF-8; a driver that sends such things would pass here and fail there.
 *
 * The rules, their order and the words are those of prost 0.14, with which gateway, driver and supervisor decode (its
 * encoding.rs and error.rs).
 */
import { isUtf8 } from "node:buffer";

/** A field, as codecs.ts lists it. */
export interface Field {
  /** Where an error is said to be, such as "DriverSandbox.id"; nowhere, in an entry of a map. */
  name?: string;
  wire: number;
  isText?: boolean;
  /** Whether it may come packed: a repeated number. */
  isPackable?: boolean;
  /** The message that it holds. */
  of?: { fields: Fields };
}
/** A message's fields, by number. */
export type Fields = readonly (Field | undefined)[];

const [VARINT, BITS_64, LENGTH, START_GROUP, END_GROUP, BITS_32] = [0, 1, 2, 3, 4, 5];
const WIRE_TYPES = [
  "Varint",
  "SixtyFourBit",
  "LengthDelimited",
  "StartGroup",
  "EndGroup",
  "ThirtyTwoBit",
] as const;
/** Messages in one another. */
const DEEPEST = 100;
/** Shorter texts are looked at byte by byte, which takes less time than a call of native code. */
const SHORT = 48;

class Refusal extends Error {
  readonly path: string[] = [];
}

let bytes: Uint8Array = Buffer.of();
let at = 0;

/** @throws Error in prost's words when these bytes are not a message with those fields */
export function mustBeMessage(given: Uint8Array, fields: Fields): void {
  bytes = given;
  at = 0;
  try {
    message(bytes.length, fields, DEEPEST);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    const words = ["failed to decode Protobuf message", ...error.path, error.message].join(": ");
    throw new Error(words, { cause: error });
  } finally {
    bytes = Buffer.of();
  }
}

function message(end: number, fields: Fields, depth: number): void {
  let inside: Field | undefined;
  try {
    while (isBefore(end)) {
      inside = undefined;
      const key = varint();
      if (key > 0xffffffff) throw new Refusal(`invalid key value: ${key}`);
      const wire = key & 7;
      if (wire > BITS_32!) throw new Refusal(`invalid wire type value: ${wire}`);
      const number = key >>> 3;
      if (number === 0) throw new Refusal("invalid tag value: 0");
      inside = fields[number];
      if (inside) value(inside, wire, depth);
      else skip(wire, number, depth);
    }
  } catch (error) {
    if (error instanceof Refusal && inside?.name) error.path.push(inside.name);
    throw error;
  }
}

function value(field: Field, wire: number, depth: number): void {
  if (field.isPackable && wire === LENGTH) {
    const end = lengthDelimited();
    while (isBefore(end)) scalar(field.wire);
    return mustEndAt(end);
  }
  if (wire !== field.wire)
    throw new Refusal(`invalid wire type: ${WIRE_TYPES[wire]} (expected ${WIRE_TYPES[field.wire]})`);
  if (wire !== LENGTH) return scalar(wire);
  if (field.of) {
    if (depth === 0) throw new Refusal("recursion limit reached");
    const end = lengthDelimited();
    message(end, field.of.fields, depth - 1);
    return mustEndAt(end);
  }
  const end = lengthDelimited();
  if (field.isText && !isText(at, end)) throw new Refusal("invalid string value: data is not UTF-8 encoded");
  at = end;
}

function scalar(wire: number): void {
  if (wire === VARINT) varint();
  else advance(wire === BITS_64 ? 8 : 4);
}

function skip(wire: number, number: number, depth: number): void {
  if (depth === 0) throw new Refusal("recursion limit reached");
  if (wire === LENGTH) at = lengthDelimited();
  else if (wire === END_GROUP) throw new Refusal("unexpected end group tag");
  else if (wire !== START_GROUP) scalar(wire);
  else
    for (;;) {
      const key = varint();
      const inner = key & 7;
      if (inner > BITS_32!) throw new Refusal(`invalid wire type value: ${inner}`);
      if (inner !== END_GROUP) skip(inner, Math.floor(key / 8), depth - 1);
      else if (Math.floor(key / 8) === number) return;
      else throw new Refusal("unexpected end group tag");
    }
}

const isBefore = (end: number): boolean => at < end;

/** @returns where what follows a length ends. */
function lengthDelimited(): number {
  const length = varint();
  if (length > bytes.length - at) throw new Refusal("buffer underflow");
  return at + length;
}

function advance(count: number): void {
  if (count > bytes.length - at) throw new Refusal("buffer underflow");
  at += count;
}

function mustEndAt(end: number): void {
  if (at !== end) throw new Refusal("delimited length exceeded");
}

/** A number of up to 64 bits; of one over 53 bits, about its value, which is enough for what is asked here. */
function varint(): number {
  let result = 0;
  let unit = 1;
  for (let count = 1; count <= 10 && at < bytes.length; count++) {
    const byte = bytes[at++]!;
    result += (byte & 127) * unit;
    unit *= 128;
    if (byte < 128) {
      if (count === 10 && byte > 1) break;
      return result;
    }
  }
  throw new Refusal("invalid varint");
}

function isText(from: number, end: number): boolean {
  let next = from;
  if (end - from < SHORT) while (next < end && bytes[next]! < 128) next++;
  return next === end || isUtf8(bytes.subarray(next, end));
}
