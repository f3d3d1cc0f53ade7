-- Makes a node's share as large as is wanted, or as is possible; what it is then.
--
-- KEYS: shares, numbers, given up, listed of the partition (and the node)
-- ARGV: node, wanted, max, what
local shares, numbers, given_up, listed = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local node, wanted, max, item = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), 'q' .. ARGV[4]

if redis.call('EXISTS', given_up) == 1 then
  -- Nothing of it counts any more, and it will ask again under another name.
  return ARGV[2]
end
local own = tonumber(redis.call('HGET', shares, node) or 0)
local share = wanted
if wanted > own then
  local all = 0
  for _, value in ipairs(redis.call('HVALS', shares)) do
    all = all + tonumber(value)
  end
  share = math.max(own, math.min(wanted, max - (all - own)))
end
if share > 0 then
  redis.call('HSET', shares, node, string.format('%.0f', share))
  redis.call('ZADD', listed, 2, item)
  -- So that it is reaped.
  redis.call('HSETNX', numbers, node, 0)
else
  redis.call('HDEL', shares, node)
  redis.call('ZREM', listed, item)
end
return string.format('%.0f', share)
