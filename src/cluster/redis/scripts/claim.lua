-- Makes a node the reader of a partition's records unless another one is. Returns whether it is (1 or 0), and how many
-- records were dropped since the last claim.
--
-- KEYS: reader, dropped of the partition
-- ARGV: node, duration of the claim in milliseconds
local reader = redis.call('GET', KEYS[1])
if reader and reader ~= ARGV[1] then
  return { 0, 0 }
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
local dropped = redis.call('GET', KEYS[2]) or '0'
redis.call('DEL', KEYS[2])
return { 1, dropped }
