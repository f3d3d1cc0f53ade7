/**
 * The page: laravel-echo on pusher-js, set up as in Laravel's documentation.
 *
 * Names and texts come from other people. They are only ever shown with `textContent`.
 */
import Echo from '/vendor/echo.js';

const TYPING_EVERY_MS = 1_000;
const TYPING_ENDS_MS = 4_000;

const page = Object.fromEntries([...document.querySelectorAll('[id]')].map((element) => [element.id, element]));

/** The members, by id. */
const members = new Map();
/** The timers of those who are typing, by id. */
const typing = new Map();
let echo;
let me;
let recipient;

const visit = await (await fetch('/me')).json();
if (visit.user) {
  enter(visit);
} else {
  show(page.welcome);
  page.name.focus();
}

page.login.addEventListener('submit', async (event) => {
  event.preventDefault();
  const response = await post('/login', { name: page.name.value });
  if (response.ok) enter(await response.json());
});

function enter({ user, pusher, channels }) {
  me = user;
  echo = new Echo({
    broadcaster: 'reverb',
    key: pusher.key,
    wsHost: pusher.host,
    wsPort: pusher.port,
    wssPort: pusher.port,
    forceTLS: false,
    enabledTransports: ['ws', 'wss'],
  });
  echo.connector.pusher.connection.bind('state_change', ({ current }) => showStatus(current));

  const announcements = echo.channel('announcements').listen('Announced', showAnnouncement);
  const inbox = echo.private(channels.inbox).listen('NoteSent', (note) => addMessage({ ...note, isPrivate: true }));
  const room = echo
    .join('room.lobby')
    .here((everybody) => {
      members.clear();
      for (const member of everybody) members.set(member.id, member);
      showMembers();
    })
    .joining((member) => {
      members.set(member.id, member);
      showMembers();
      addNotice(`${member.name} came in`);
    })
    .leaving((member) => {
      members.delete(member.id);
      stopTyping(member.id);
      if (recipient?.id === member.id) writeTo(undefined);
      showMembers();
      addNotice(`${member.name} left`);
    })
    .listen('MessageSent', (message) => {
      stopTyping(message.from.id);
      addMessage(message);
    })
    // The server adds the id of the sender. What the whisper itself says about its sender could be forged.
    .listenForWhisper('typing', (whisper, { user_id: id }) => startTyping(id))
    .listenForWhisper('stopped', (whisper, { user_id: id }) => stopTyping(id));

  // The form is enabled only after the subscription has succeeded.
  const joined = [announcements, inbox, room].map(
    (channel) =>
      new Promise((resolve) => {
        channel.subscribed(resolve).error(() => addNotice('This channel did not let you in'));
      }),
  );
  Promise.all(joined).then(() => {
    page.text.disabled = false;
    page.announcement.disabled = false;
    writeTo(undefined);
  });
  show(page.chat);
}

/* Sending */

page.compose.addEventListener('submit', async (event) => {
  event.preventDefault();
  const text = page.text.value.trim();
  if (!text) return;
  const sent = addMessage({ from: me, text, at: Date.now(), to: recipient, isPrivate: Boolean(recipient) });
  page.text.value = '';
  whisperTyping();
  const response = await post('/messages', recipient ? { kind: 'note', to: recipient.id, text } : { text });
  sent.classList.toggle('failed', !response.ok);
});

page.announce.addEventListener('submit', async (event) => {
  event.preventDefault();
  const response = await post('/messages', { kind: 'announcement', text: page.announcement.value });
  if (response.ok) page.announcement.value = '';
});

page.text.addEventListener('input', whisperTyping);
page.recipient.addEventListener('click', () => writeTo(undefined));

let whisperedAt = 0;

/** Whispers, at most once a second, whether this visitor is typing. */
function whisperTyping() {
  const room = echo.join('room.lobby');
  const isTyping = page.text.value !== '' && !recipient;
  if (!isTyping) {
    if (whisperedAt > 0) room.whisper('stopped', {});
    whisperedAt = 0;
  } else if (Date.now() - whisperedAt > TYPING_EVERY_MS) {
    room.whisper('typing', {});
    whisperedAt = Date.now();
  }
}

function writeTo(member) {
  recipient = member;
  page.recipient.hidden = !member;
  page.recipient.textContent = member ? `Only ${member.name} ×` : '';
  page.text.placeholder = member ? `A note for ${member.name}` : 'A message for everybody';
  page.text.focus();
}

function post(path, body) {
  return fetch(path, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json', ...(echo && { 'X-Socket-ID': echo.socketId() }) },
    body: JSON.stringify(body),
  });
}

/* Showing */

function show(main) {
  page.welcome.hidden = main !== page.welcome;
  page.chat.hidden = main !== page.chat;
}

function showStatus(state) {
  page.status.textContent = state;
  page.status.dataset.state = state;
}

function showAnnouncement({ from, text }) {
  page.banner.replaceChildren(element('strong', from.name), ` ${text}`);
  page.banner.hidden = false;
}

function showMembers() {
  const sorted = [...members.values()].sort((a, b) => a.name.localeCompare(b.name));
  page.count.textContent = sorted.length;
  page.members.replaceChildren(
    ...sorted.map((member) => {
      const isMe = member.id === me.id;
      const button = element('button');
      button.type = 'button';
      button.disabled = isMe;
      button.title = isMe ? '' : `Write a note to ${member.name}`;
      button.append(avatar(member), element('span', isMe ? `${member.name} (you)` : member.name));
      button.addEventListener('click', () => writeTo(member));
      const item = element('li');
      item.append(button);
      return item;
    }),
  );
}

function startTyping(id) {
  if (!members.has(id)) return;
  clearTimeout(typing.get(id));
  typing.set(id, setTimeout(stopTyping, TYPING_ENDS_MS, id));
  showTyping();
}

function stopTyping(id) {
  clearTimeout(typing.get(id));
  typing.delete(id);
  showTyping();
}

function showTyping() {
  const names = [...typing.keys()].map((id) => members.get(id)?.name);
  page.typing.textContent =
    names.length === 0 ? '' : `${new Intl.ListFormat('en').format(names)} ${names.length === 1 ? 'is' : 'are'} typing…`;
}

function addMessage({ from, text, at, to, isPrivate = false }) {
  const item = element('li', '', 'message');
  item.classList.toggle('mine', from.id === me.id);
  item.classList.toggle('private', isPrivate);
  const head = element('p', '', 'head');
  head.append(element('strong', from.name), element('time', new Date(at).toTimeString().slice(0, 5)));
  if (isPrivate) head.append(element('span', to ? `only for ${to.name}` : 'only for you', 'tag'));
  const bubble = element('div', '', 'bubble');
  bubble.append(head, element('p', text, 'text'));
  item.append(avatar(from), bubble);
  return append(item);
}

function addNotice(text) {
  append(element('li', text, 'notice'));
}

function append(item) {
  page.messages.append(item);
  item.scrollIntoView({ block: 'end' });
  return item;
}

/** Initials on a colour that is always the same for the same person. */
function avatar({ id, name }) {
  const hue = [...id].reduce((sum, letter) => (sum * 31 + letter.codePointAt(0)) % 360, 7);
  const circle = element('span', [...name][0].toUpperCase(), 'avatar');
  circle.style.setProperty('--hue', hue);
  return circle;
}

function element(tag, text = '', className = '') {
  const created = document.createElement(tag);
  created.textContent = text;
  created.className = className;
  return created;
}
