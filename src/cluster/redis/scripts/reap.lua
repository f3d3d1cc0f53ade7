-- Gives a node up in one partition and takes some of what it has there; whether there is more (1 or 0).
--
-- KEYS: version, numbers, given up, listed, occupied, records, reader, dropped of the partition (and the node). Those of what the
--       node has are found only here; they have the partition's hash tag, so they are in its slot.
-- ARGV: publish, number of the partition, node_topics, what the partition's keys begin with, node
local GROUPS_MAX, MEMBERS_MAX = 100, 1000
-- It could come back for so long, in seconds. After that only its lease, which it has not, would let it.
local GIVEN_UP_SECS = 3600

local part = {
  version = KEYS[1], occupied = KEYS[5], records = KEYS[6], reader = KEYS[7],
  dropped = KEYS[8],
  publish = ARGV[1], number = ARGV[2], node_topics = ARGV[3],
}
local numbers, given_up, listed = KEYS[2], KEYS[3], KEYS[4]
local begin, node = ARGV[4], ARGV[5]

redis.call('SET', given_up, 1, 'EX', GIVEN_UP_SECS)
local items = redis.call('ZRANGE', listed, 0, GROUPS_MAX - 1, 'WITHSCORES')
local left = MEMBERS_MAX
for at = 1, #items, 2 do
  if left <= 0 then
    break
  end
  local item = items[at]
  local name = string.sub(item, 2)
  if string.sub(item, 1, 1) == 'g' then
    local group = {
      name = name, topic = begin .. 't:' .. name, is_noted = items[at + 1] == '1',
      holders = begin .. 'h:' .. name, version = begin .. 'x:' .. name, members = begin .. 'm:' .. name,
      here = begin .. 's:' .. node .. ':' .. name,
    }
    local taken, is_done = leave(part, group, node, left)
    left = left - taken
    last_version(group)
    if is_done then
      redis.call('ZREM', listed, item)
    end
  else
    redis.call('HDEL', begin .. 'q:' .. name, node)
    redis.call('ZREM', listed, item)
  end
end
call_reader(part)

if redis.call('EXISTS', listed) == 1 then
  return 1
end
redis.call('HDEL', numbers, node)
return 0
