/** Starts the `pusherd` binary on a free port, in an empty directory and with an empty environment. */
import assert from 'node:assert/strict';
import { access, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { startChild } from './child.mjs';
import { closeWith } from './resources.mjs';

const BINARY = process.env.PUSHERD_BIN ?? fileURLToPath(new URL('../../../target/debug/pusherd', import.meta.url));
const START_TIMEOUT_MS = 15_000;
const STOP_TIMEOUT_MS = 10_000;
const HOST = '127.0.0.1';

/** The settings of every test server. `startPusherd(owner, { server })` overrides them. */
const SERVER = { activity_timeout_secs: 30, drain_secs: 0, ping_interval_secs: 50, pong_timeout_secs: 30 };

const APP = {
  client_events: 'members',
  subscription_counts: false,
  watchlist: true,
  path_prefix: '',
  cache_ttl_secs: 1800,
  authorized_connections_timeout_secs: 0,
};

/** The apps of every test server, named by the settings in which they differ. */
export const APPS = {
  main: { id: '1001', key: 'demo-key', secret: 'demo-secret' },
  counting: { id: '1002', key: 'counting-key', secret: 'counting-secret', subscription_counts: true },
  quiet: { id: '1003', key: 'quiet-key', secret: 'quiet-secret', client_events: 'off' },
  small: { id: '1004', key: 'small-key', secret: 'small-secret', limits: { presence_members: 2 } },
  prefixed: { id: '1005', key: 'prefixed-key', secret: 'prefixed-secret', path_prefix: '/rt' },
  strict: { id: '1006', key: 'strict-key', secret: 'strict-secret', authorized_connections_timeout_secs: 1 },
  forgetful: { id: '1007', key: 'forgetful-key', secret: 'forgetful-secret', cache_ttl_secs: 1 },
  compressed: { id: '1008', key: 'compressed-key', secret: 'compressed-secret', compression: true },
};

/** A server process, which can be restarted on its port. */
export class Pusherd {
  host = HOST;
  apps = APPS;
  port = 0;
  #directory;
  #config;
  #process;
  #output = '';

  /** With `APPS`. `apps` overrides their settings, by name. */
  constructor({ server = {}, apps: changes = {}, ...sections } = {}) {
    const apps = Object.entries(APPS).map(([name, app]) => ({ ...APP, ...app, ...changes[name] }));
    this.#config = { server: { ...SERVER, ...server }, ...sections, apps };
  }

  get httpUrl() {
    return `http://${this.host}:${this.port}`;
  }

  /** All output of the process. */
  get output() {
    return this.#output;
  }

  async start() {
    await access(BINARY).catch(() => {
      throw new Error(`${BINARY} does not exist: run \`cargo build\`, or set PUSHERD_BIN`);
    });
    this.#directory ??= await mkdtemp(join(tmpdir(), 'pusherd-compat-'));
    const configPath = join(this.#directory, 'pusherd.toml');
    await writeFile(configPath, toToml(this.#config));

    const child = startChild(BINARY, ['serve', '--config', configPath, '--host', this.host, '--port', String(this.port)], {
      cwd: this.#directory,
      env: { PATH: process.env.PATH, HOME: this.#directory },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    this.#process = child;
    this.port = await this.#listening(child);
    return this;
  }

  #listening(child) {
    return new Promise((resolve, reject) => {
      const fail = (reason) => {
        clearTimeout(timer);
        reject(new Error(`pusherd ${reason}; it printed:\n${this.#output}`));
      };
      const timer = setTimeout(() => {
        child.kill('SIGKILL');
        fail(`was not listening after ${START_TIMEOUT_MS} ms`);
      }, START_TIMEOUT_MS);

      let printed = '';
      const read = (chunk) => {
        printed += chunk;
        this.#output += chunk;
        const [, port] = /listening on [^\s]*:(\d+)/.exec(printed) ?? [];
        if (!port) return;
        clearTimeout(timer);
        resolve(Number(port));
      };
      child.stdout.setEncoding('utf8').on('data', read);
      child.stderr.setEncoding('utf8').on('data', read);
      child.once('error', (error) => fail(`did not start: ${error.message}`));
      child.exited.then(({ code, signal }) => fail(`exited early (code ${code}, signal ${signal})`));
    });
  }

  /** Sends SIGTERM, and asserts that the process exits with code 0. */
  async terminate() {
    const child = this.#process;
    if (!child) return;
    this.#process = undefined;
    child.kill('SIGTERM');
    const timer = setTimeout(() => child.kill('SIGKILL'), STOP_TIMEOUT_MS);
    const { code, signal } = await child.exited;
    clearTimeout(timer);
    assert.deepEqual({ code, signal }, { code: 0, signal: null }, `pusherd exited with an error; it printed:\n${this.#output}`);
  }

  /** Terminates the process, and starts another one with the same settings on the same port. */
  async restart() {
    await this.terminate();
    await this.start();
  }

  async kill() {
    const child = this.#process;
    this.#process = undefined;
    child.kill('SIGKILL');
    await child.exited;
  }

  /** Stops the process with SIGSTOP until it is resumed. Its connections stay open. */
  pause() {
    this.#process.kill('SIGSTOP');
  }

  resume() {
    this.#process?.kill('SIGCONT');
  }

  /** Terminates the process if it runs, paused or not, and deletes its directory. */
  async stop() {
    try {
      this.resume();
      await this.terminate();
    } finally {
      if (this.#directory) await rm(this.#directory, { recursive: true, force: true });
    }
  }
}

/** Starts a server. See the constructor of `Pusherd` for the settings. */
export function startPusherd(owner, settings) {
  const pusherd = new Pusherd(settings);
  closeWith(owner, 'pusherd', () => pusherd.stop());
  return pusherd.start();
}

/** Writes TOML: scalars, lists of scalars, tables, and lists of tables. */
function toToml(table, path = []) {
  const entries = Object.entries(table);
  const isTable = (value) => typeof value === 'object' && !Array.isArray(value);
  const isTables = (value) => Array.isArray(value) && value.every(isTable);
  const scalars = entries.filter(([, value]) => !isTable(value) && !isTables(value));
  const lists = entries.filter(([, value]) => isTables(value));
  const tables = entries.filter(([, value]) => isTable(value));
  return [
    ...scalars.map(([key, value]) => `${key} = ${JSON.stringify(value)}\n`),
    ...tables.map(([key, value]) => `\n[${[...path, key].join('.')}]\n${toToml(value, [...path, key])}`),
    ...lists.flatMap(([key, items]) =>
      items.map((item) => `\n[[${[...path, key].join('.')}]]\n${toToml(item, [...path, key])}`),
    ),
  ].join('');
}
