// SPDX-License-Identifier: Apache-2.0

/**
 * `generate-certs --output-dir DIR [--server-san NAME]...`: a certificate authority, a server and a client certificate
 * (P-256), and an Ed25519 key pair for sandbox tokens. A finished folder is kept; a half-finished one is an error.
 *
 * X.509 is written here in its DER form, about 40 lines, so that TLS needs neither a program nor a package.
 */
import {
  createHash,
  createPrivateKey,
  createPublicKey,
  generateKeyPairSync,
  randomBytes,
  sign,
  X509Certificate,
  type KeyObject,
} from "node:crypto";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { isIPv4, isIPv6 } from "node:net";
import { dirname, join } from "node:path";
import type { Logger } from "../log.ts";
import { Failure, UsageError } from "./failure.ts";

const DEFAULT_SANS = [
  "openshell",
  "openshell.openshell.svc",
  "openshell.openshell.svc.cluster.local",
  "localhost",
  "openshell.localhost",
  "*.openshell.localhost",
  "host.docker.internal",
  "host.containers.internal",
  "127.0.0.1",
  "::1",
];

const TLS_FILES = [
  "ca.crt",
  "ca.key",
  "server/tls.crt",
  "server/tls.key",
  "client/tls.crt",
  "client/tls.key",
];
const JWT_FILES = ["jwt/signing.pem", "jwt/public.pem", "jwt/kid"];

// The command

/**
 * Runs the command.
 * @throws UsageError for a bad command line, Failure for a folder that holds only some of the files
 */
export function generateCerts(argv: string[], env: Record<string, string | undefined>, log: Logger): void {
  const { folder, sans, dryRun } = parse(argv);
  if (dryRun) {
    for (const [name, text] of Object.entries({ ...tlsFiles(sans), ...jwtFiles() }))
      console.log(`# ${name}\n${text}`);
    return;
  }
  const present = (names: string[]) => names.filter((name) => existsSync(join(folder, name))).length;
  const [tls, jwt] = [present(TLS_FILES), present(JWT_FILES)];
  if (
    (tls !== 0 && tls !== TLS_FILES.length) ||
    (jwt !== 0 && jwt !== JWT_FILES.length) ||
    (jwt !== 0 && tls === 0)
  ) {
    throw new Failure(
      `partial PKI state in ${folder}: some files exist but not all. Recover with: rm -rf ${folder} (the gateway will regenerate on next start)`,
    );
  }
  const missing = tls === 0 ? [] : missingSans(readFileSync(join(folder, "server/tls.crt"), "utf8"), sans);
  if (tls === 0 || missing.length) write(folder, tlsFiles(sans));
  if (jwt === 0) write(folder, jwtFiles());
  if (tls === 0) log.info("PKI files created.", { dir: folder });
  else if (missing.length) {
    log.info("server TLS certificate refreshed for current SAN set.", {
      dir: folder,
      missing_sans: missing.join(", "),
    });
  } else if (jwt === 0) log.info("JWT signing files created for existing TLS install.", { dir: folder });
  else log.info("PKI files already exist, skipping.", { dir: folder });

  // The openshell command line looks for the client's files here.
  const config = env.XDG_CONFIG_HOME || join(env.HOME ?? "/", ".config");
  const read = (name: string) => readFileSync(join(folder, name), "utf8");
  write(join(config, "openshell", "gateways", "openshell", "mtls"), {
    "ca.crt": read("ca.crt"),
    "tls.crt": read("client/tls.crt"),
    "tls.key": read("client/tls.key"),
  });
}

function parse(argv: string[]): { folder: string; sans: string[]; dryRun: boolean } {
  const usage = "\nUsage: openshell-gateway generate-certs [OPTIONS]\n";
  const sans: string[] = [];
  let folder = "";
  let dryRun = false;
  for (let index = 0; index < argv.length; index++) {
    const [, flag, attached] = /^(--[^=]+)(?:=(.*))?$/s.exec(argv[index]!) ?? [];
    if (flag === "--dry-run") dryRun = true;
    else if (flag === "--output-dir" || flag === "--server-san") {
      const value = attached ?? argv[++index] ?? "";
      if (!value) {
        const shown = flag === "--output-dir" ? `${flag} <DIR>` : `${flag} <SAN>`;
        throw new UsageError(`a value is required for '${shown}' but none was supplied`);
      }
      if (flag === "--output-dir") folder = value;
      else sans.push(value);
    } else throw new UsageError(`unexpected argument '${argv[index]}' found`, usage);
  }
  if (!folder) {
    throw new UsageError("the following required arguments were not provided:\n  --output-dir <DIR>", usage);
  }
  return { folder, sans, dryRun };
}

/** Keys are readable by their owner alone. */
function write(folder: string, files: Record<string, string>): void {
  for (const [name, text] of Object.entries(files)) {
    const path = join(folder, name);
    mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
    writeFileSync(path, text, { mode: /\.key$|signing\.pem$/.test(name) ? 0o600 : 0o644 });
  }
}

function missingSans(certificate: string, extra: string[]): string[] {
  const present = new X509Certificate(certificate).subjectAltName ?? "";
  const names = new Set(present.split(", ").map((name) => name.replace(/^(DNS|IP Address):/, "")));
  return [...DEFAULT_SANS, ...extra].filter((san) => !names.has(isIPv6(san) ? longIPv6(san) : san));
}

// Contents

function tlsFiles(extraSans: string[]): Record<string, string> {
  const [ca, server, client] = [keyPair(), keyPair(), keyPair()];
  const issuer: Name = { CN: "openshell-ca", O: "openshell" };
  const issue = (subject: Name, key: KeyObject, extensions: Buffer[]) =>
    certificate({ issuer, subject, key, signer: ca.privateKey, extensions });
  return {
    "ca.crt": issue(issuer, ca.publicKey, [caOnly(), subjectKeyId(ca.publicKey)]),
    "ca.key": pem(ca.privateKey),
    "server/tls.crt": issue({ CN: "openshell-server" }, server.publicKey, [
      altNames([...new Set([...DEFAULT_SANS, ...extraSans])]),
    ]),
    "server/tls.key": pem(server.privateKey),
    "client/tls.crt": issue({ CN: "openshell-client", OU: "openshell-user" }, client.publicKey, []),
    "client/tls.key": pem(client.privateKey),
  };
}

function jwtFiles(): Record<string, string> {
  const { privateKey, publicKey } = generateKeyPairSync("ed25519");
  return {
    "jwt/signing.pem": pem(privateKey),
    "jwt/public.pem": publicKey.export({ type: "spki", format: "pem" }).toString(),
    "jwt/kid": randomBytes(16).toString("hex"),
  };
}

/** Through PEM, because Bun signs with parsed keys only. */
function keyPair(): { privateKey: KeyObject; publicKey: KeyObject } {
  const { privateKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
  const parsed = createPrivateKey(pem(privateKey));
  return { privateKey: parsed, publicKey: createPublicKey(parsed) };
}

const pem = (key: KeyObject) => key.export({ type: "pkcs8", format: "pem" }).toString();

// X.509 in DER (RFC 5280)

type Name = Partial<Record<"CN" | "O" | "OU", string>>;

const OID = {
  CN: "550403",
  O: "55040a",
  OU: "55040b",
  ecdsaWithSha256: "2a8648ce3d040302",
  basicConstraints: "551d13",
  subjectAltName: "551d11",
  subjectKeyIdentifier: "551d0e",
};

function tagged(tag: number, ...parts: Buffer[]): Buffer {
  const body = Buffer.concat(parts);
  const size = body.length;
  const length = size < 128 ? [size] : size < 256 ? [0x81, size] : [0x82, size >> 8, size & 255];
  return Buffer.concat([Buffer.from([tag, ...length]), body]);
}

const sequence = (...parts: Buffer[]) => tagged(0x30, ...parts);
const oid = (name: keyof typeof OID) => tagged(0x06, Buffer.from(OID[name], "hex"));
const octets = (body: Buffer) => tagged(0x04, body);
const bits = (body: Buffer) => tagged(0x03, Buffer.from([0]), body);
const yes = tagged(0x01, Buffer.from([0xff]));

const extension = (name: keyof typeof OID, value: Buffer, critical = false) =>
  sequence(oid(name), ...(critical ? [yes] : []), octets(value));

const caOnly = () => extension("basicConstraints", sequence(yes), true);

const subjectKeyId = (key: KeyObject) => {
  const point = key.export({ type: "spki", format: "der" }).subarray(-65);
  return extension("subjectKeyIdentifier", octets(createHash("sha1").update(point).digest()));
};

const altNames = (names: string[]) =>
  extension(
    "subjectAltName",
    sequence(
      ...names.map((name) =>
        isIPv4(name) || isIPv6(name) ? tagged(0x87, ipBytes(name)) : tagged(0x82, Buffer.from(name, "ascii")),
      ),
    ),
  );

const ipBytes = (ip: string) =>
  isIPv4(ip)
    ? Buffer.from(ip.split(".").map(Number))
    : Buffer.from(
        longIPv6(ip)
          .split(":")
          .map((group) => group.padStart(4, "0"))
          .join(""),
        "hex",
      );

/** An IPv6 address with its eight groups written out, as X509Certificate prints it. */
function longIPv6(ip: string): string {
  const [head = [], tail = []] = ip
    .toUpperCase()
    .split("::")
    .map((half) => half.split(":").filter(Boolean));
  const gap = ip.includes("::") ? Array<string>(8 - head.length - tail.length).fill("0") : [];
  return [...head, ...gap, ...tail].map((group) => group.replace(/^0+(?=.)/, "")).join(":");
}

const distinguished = (name: Name) =>
  sequence(
    ...Object.entries(name).map(([part, text]) =>
      tagged(0x31, sequence(oid(part as keyof Name), tagged(0x0c, Buffer.from(text)))),
    ),
  );

/** Valid from 1975 to 4096, as the real command's: the material lives as long as its folder. */
function certificate(parts: {
  issuer: Name;
  subject: Name;
  key: KeyObject;
  signer: KeyObject;
  extensions: Buffer[];
}): string {
  const algorithm = sequence(oid("ecdsaWithSha256"));
  const serial = randomBytes(20);
  serial[0]! &= 0x7f; // a positive number
  serial[0]! |= 0x01; // with no leading zero octet
  const toSign = sequence(
    tagged(0xa0, tagged(0x02, Buffer.from([2]))),
    tagged(0x02, serial),
    algorithm,
    distinguished(parts.issuer),
    sequence(tagged(0x17, Buffer.from("750101000000Z")), tagged(0x18, Buffer.from("40960101000000Z"))),
    distinguished(parts.subject),
    parts.key.export({ type: "spki", format: "der" }),
    ...(parts.extensions.length ? [tagged(0xa3, sequence(...parts.extensions))] : []),
  );
  const signed = sequence(toSign, algorithm, bits(sign("sha256", toSign, parts.signer)));
  const lines = signed.toString("base64").match(/.{1,64}/g)!;
  return `-----BEGIN CERTIFICATE-----\n${lines.join("\n")}\n-----END CERTIFICATE-----\n`;
}
