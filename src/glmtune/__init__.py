"""glmtune"""
