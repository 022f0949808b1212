// SPDX-License-Identifier: Apache-2.0

/**
 * Who calls, and what they may call. Sandbox supervisors carry a token that this gateway signed (EdDSA); everyone else
 * is a user, by client certificate or because unauthenticated users are allowed.
 */
import { createPrivateKey, createPublicKey, sign, verify, type KeyObject } from "node:crypto";
import { readFileSync } from "node:fs";
import type { Metadata } from "@grpc/grpc-js";
import { denied, unauthenticated } from "../status.ts";
import { Failure, osError } from "./failure.ts";
import type { Settings } from "./settings.ts";

export type Principal = { kind: "user" } | { kind: "sandbox"; id: string };

/** Who may call a method: anyone, users, supervisors, or both of these. */
export type Audience = "anyone" | "users" | "sandboxes" | "both";

const EXPIRY_LEEWAY_SECONDS = 60;
const USER: Principal = { kind: "user" };

export class Authenticator {
  readonly tokens: Tokens | undefined;

  /** @throws Failure when a key file cannot be read */
  constructor(private readonly settings: Settings) {
    this.tokens = settings.jwt && new Tokens(settings.jwt);
  }

  /**
   * The caller of a method.
   * @throws Status UNAUTHENTICATED or PERMISSION_DENIED
   */
  admit(metadata: Metadata, audience: Audience): Principal {
    if (audience === "anyone") return USER;
    const principal = this.#identify(metadata);
    if (principal.kind === "user" && audience === "sandboxes")
      throw denied("this method requires a sandbox principal");
    if (principal.kind === "sandbox" && audience === "users") {
      throw denied("sandbox principals may not call this method");
    }
    return principal;
  }

  #identify(metadata: Metadata): Principal {
    const [, token] = /^Bearer (.*)$/s.exec(String(metadata.get("authorization")[0] ?? "")) ?? [];
    const id = token === undefined ? undefined : this.tokens?.verify(token);
    if (id !== undefined) return { kind: "sandbox", id };
    // With client certificates required, whoever got as far as this has shown one.
    if (this.settings.mtlsAuth || this.settings.allowUnauthenticatedUsers || !this.tokens) return USER;
    throw unauthenticated("missing authorization header");
  }
}

/** @throws Status PERMISSION_DENIED when a supervisor speaks of a sandbox other than its own */
export function requireOwn(principal: Principal, sandboxId: string): void {
  if (principal.kind === "sandbox" && principal.id !== sandboxId) {
    throw denied("cross-sandbox access denied: principal does not own this sandbox");
  }
}

// Tokens

interface Claims {
  sub: string;
  iss: string;
  aud: string;
  iat: number;
  /** Seconds since 1970; 0 is never. */
  exp: number;
  sandbox_id: string;
}

export class Tokens {
  #signingKey: KeyObject;
  #publicKey: KeyObject;
  #kid: string;
  #identity: string;
  #ttlSeconds: number;

  /** @throws Failure when a key file cannot be read */
  constructor({
    signingKeyPath,
    publicKeyPath,
    kidPath,
    gatewayId,
    ttlSeconds,
  }: NonNullable<Settings["jwt"]>) {
    const signing = keyFile(signingKeyPath, "signing key");
    const publicPem = keyFile(publicKeyPath, "public key");
    this.#kid = keyFile(kidPath, "kid").trim();
    if (this.#kid === "") throw Failure.config(`sandbox JWT kid file ${kidPath} is empty`);
    this.#signingKey = parseKey(() => createPrivateKey(signing), "signing");
    this.#publicKey = parseKey(() => createPublicKey(publicPem), "public");
    this.#identity = `openshell-gateway:${gatewayId}`;
    this.#ttlSeconds = ttlSeconds;
  }

  /** A new token for a sandbox. `expiresAtMs` is 0 when it never expires. */
  mint(sandboxId: string): { token: string; expiresAtMs: number } {
    const now = Math.floor(Date.now() / 1000);
    const claims: Claims = {
      sub: `spiffe://openshell/sandbox/${sandboxId}`,
      iss: this.#identity,
      aud: this.#identity,
      iat: now,
      exp: this.#ttlSeconds === 0 ? 0 : now + this.#ttlSeconds,
      sandbox_id: sandboxId,
    };
    const signed = `${encode({ typ: "JWT", alg: "EdDSA", kid: this.#kid })}.${encode(claims)}`;
    const signature = sign(null, Buffer.from(signed), this.#signingKey).toString("base64url");
    return { token: `${signed}.${signature}`, expiresAtMs: claims.exp * 1000 };
  }

  /**
   * The sandbox that a token was made for, or undefined when it bears another key's id: then it is not ours to judge.
   * @throws Status UNAUTHENTICATED when it is ours and no good
   */
  verify(token: string): string | undefined {
    const [head = "", body = "", signature = ""] = token.split(".");
    const header = decode<{ kid?: string; alg?: string }>(head);
    if (!header) throw unauthenticated("invalid token");
    if (header.kid !== this.#kid || header.alg !== "EdDSA") return undefined;
    if (!verify(null, Buffer.from(`${head}.${body}`), this.#publicKey, Buffer.from(signature, "base64url"))) {
      throw unauthenticated("invalid token: InvalidSignature");
    }
    const claims = decode<Partial<Claims>>(body);
    if (claims?.iss !== this.#identity) throw unauthenticated("invalid token: InvalidIssuer");
    if (claims.aud !== this.#identity) throw unauthenticated("invalid token: InvalidAudience");
    if (claims.exp && claims.exp < Date.now() / 1000 - EXPIRY_LEEWAY_SECONDS) {
      throw unauthenticated("invalid token: ExpiredSignature");
    }
    return claims.sandbox_id;
  }
}

function keyFile(path: string, what: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    throw Failure.config(`failed to read sandbox JWT ${what} from ${path}: ${osError(error)}`);
  }
}

function parseKey(parse: () => KeyObject, what: string): KeyObject {
  let key: KeyObject | undefined;
  try {
    key = parse();
  } catch {}
  if (key?.asymmetricKeyType === "ed25519") return key;
  throw Failure.config(`failed to parse Ed25519 ${what} key PEM: InvalidKeyFormat`);
}

const encode = (value: object) => Buffer.from(JSON.stringify(value)).toString("base64url");

function decode<Value>(text: string): Value | undefined {
  try {
    return JSON.parse(Buffer.from(text, "base64url").toString()) as Value;
  } catch {
    return undefined;
  }
}
